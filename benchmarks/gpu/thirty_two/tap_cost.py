"""What the tap adds to a prefill in vLLM: python -m benchmarks.gpu.thirty_two.tap_cost --model DIR --out FILE.json

One process, one load, by turns: the prefill without anything of ours (`bare`), with our steps but no tap, with a tap
that keeps statistics, with full tensors that end in a null sink, in memory-backed files and on a disk, and with
forward hooks as one would write them by hand. Of a tap two times are told: until the engine's step is done and all
copies are in host memory, which is what a prefill costs, and what handing them on and writing them takes afterwards.

`--lengths` measures further prompts: a short prefill is bound by the process that launches its kernels, a long one by
the GPU; its tensors have to cross the bus, and somebody has to take them.

A tap keeps Python's cyclic collector off while a prompt runs, so all kinds are measured with it off; "bare, collector
on" is the engine as it comes. "another length" are prompts that nothing was made for before, each of another length.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import pstats
import re
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.thirty_two.by_hand import KINDS, SLOW, hooked
from benchmarks.gpu.thirty_two.prompt import Found, load_spec, synchronize, token_ids, vocabulary_of
from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.store import CaptureWriter, NullSink
from gptq_diff.capture.tap import Call, Sink, Tap
from gptq_diff.engines.vllm.rank import OneProcess
from gptq_diff.engines.vllm_engine import VllmEngine, model_of

Times = dict[str, list[float]]
MODES = {"marlin": "marlin", "gptq": "exllama-reconstruct", "auto": "as-chosen"}
"""Route -> kernel mode: none in which a planted overflow makes NaN, which take the careful way through figures."""


class Nowhere(Sink):
    """Takes full tensors and drops them: a disk that takes no time."""

    wants_tensors = True
    later = True

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:  # noqa: ARG002
        """Count."""
        self.calls += 1
        self.bytes += sum(t.nbytes for t in (x_MK, y_MN) if t is not None)


class Bench:
    """One engine and the prefill that everything is measured on."""

    def __init__(self, engine: VllmEngine, ids: tuple[int, ...]) -> None:
        self.engine = engine
        self.ids = ids
        self.waited = 0
        self.bytes = 0

    def bare(self) -> float:
        """LLM.generate, nothing of ours in place."""
        sampling = self.engine._sampling(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
        synchronize()
        started = time.perf_counter()
        self.engine._llm.generate({"prompt_token_ids": list(self.ids)}, sampling, use_tqdm=False)
        synchronize()
        return time.perf_counter() - started

    def at_length(self, rows: int, vocabulary: int, rounds: int) -> dict[str, float]:
        """Medians of a prompt of so many tokens: bare, with statistics, with tensors that are dropped."""
        ids, before, times = token_ids(rows, vocabulary), self.ids, Times()
        self.ids = ids
        for turn in range(rounds + 1):
            took = {"bare": self.bare(), "statistics": self.tapped(NullSink())[0], "tensors": self.tapped(Nowhere())[0]}
            for kind, seconds in took.items():
                times.setdefault(kind, []).extend([seconds] if turn else [])
        self.ids = before
        return {kind: statistics.median(values) for kind, values in times.items()}

    def followed(self) -> float:
        """Our steps around it, no tap."""
        synchronize()
        started = time.perf_counter()
        self.engine.generate(self.ids, max_new_tokens=1, forced=None, tap=None)
        synchronize()
        return time.perf_counter() - started

    def tapped(
        self, sink: Sink, close: Callable[[], None] = lambda: None, ids: tuple[int, ...] = ()
    ) -> tuple[float, float]:
        """(until the copies are in host memory, what is done with them afterwards)."""
        synchronize()
        started = time.perf_counter()
        with Tap(self.engine.tapped, sink) as tap:
            self.engine.generate(ids or self.ids, max_new_tokens=1, forced=None, tap=tap)
            tap.copied()
            synchronize()
            copied = time.perf_counter()
        close()
        self.waited += tap.waited
        return copied - started, time.perf_counter() - copied

    def written(self, place: Path) -> tuple[float, float]:
        """Into a capture there."""
        shutil.rmtree(place, ignore_errors=True)
        writer = CaptureWriter(place)
        took = self.tapped(writer, writer.close)
        self.bytes = writer.bytes_written
        return took

    def by_hand(self, kind: str) -> float:
        """With forward hooks of that kind."""
        with hooked(model_of(self.engine._llm), KINDS[kind]) as kept:
            took = self.bare()
        assert kept
        return took


def measure(bench: Bench, places: dict[str, Path], rounds: int, slow_rounds: int) -> Times:
    """Seconds of every round, all kinds by turns; of kinds that write there are fewer."""
    times: Times = {}

    def note(kind: str, seconds: float, turn: int) -> None:
        if turn >= 2:
            times.setdefault(kind, []).append(seconds)

    for turn in range(rounds + 2):
        gc.enable()
        note("bare, collector on", bench.bare(), turn)
        gc.collect()
        gc.disable()
        note("bare", bench.bare(), turn)
        note("followed", bench.followed(), turn)
        for kind, sink in (("statistics", NullSink()), ("tensors", Nowhere())):
            copied, after = bench.tapped(sink)
            note(kind, copied, turn)
            note(f"{kind}, handed on afterwards", after, turn)
            other = bench.ids[: max(len(bench.ids) - 1 - turn, 2)]
            note(f"{kind}, another length", bench.tapped(sink, ids=other)[0], turn)
        for kind in KINDS:
            if kind not in SLOW or turn < slow_rounds + 2:
                note(kind, bench.by_hand(kind), turn)
        if turn < slow_rounds + 2:
            for name, place in places.items():
                copied, after = bench.written(place)
                note(f"tensors to {name}", copied, turn)
                note(f"tensors to {name}, written afterwards", after, turn)
    gc.enable()
    return times


def launches(work: Callable[[], Any]) -> dict[str, float]:
    """What one prefill sends to the GPU: kernels, copies and fills; and the time the GPU was busy with them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    events = seen.key_averages()
    names = ("launchkernel", "memcpyasync", "memsetasync")
    count = sum(e.count for e in events if any(name in e.key.lower() for name in names))
    there = [e for e in events if e.device_type.name != "CPU"]  # an operation of the CPU tells its kernels' time again
    copied = sum(e.self_device_time_total for e in there if "memcpy" in e.key.lower())
    busy = sum(e.self_device_time_total for e in there)
    return {"launches": count, "gpu_busy_seconds": busy / 1e6, "of_which_copies": copied / 1e6}


def profiled(work: Callable[[], Any], rounds: int = 10) -> str:
    """Where this process spends its time: cProfile's table."""
    profiler, lines = cProfile.Profile(), io.StringIO()
    for _ in range(rounds):
        profiler.enable()
        work()
        profiler.disable()
    pstats.Stats(profiler, stream=lines).sort_stats("tottime").print_stats(40)
    return lines.getvalue()


def public(table: str) -> str:
    """The table without the directories that packages lie in."""
    return re.sub(r"\S*/(?=(site-packages|vllm|gptq_diff|benchmarks)/)", "", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm/gptq-diff-tap"))
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--route", default="marlin", choices=sorted(MODES))
    parser.add_argument("--rows", type=int, default=37)
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="of further prompts, in tokens")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--slow-rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="write there where Python spends its time")
    parser.add_argument("--staged", action="store_true", help="stage copies of CPU tensors too: a trial without a GPU")
    asked = parser.parse_args()
    if asked.staged:
        taps.asks_later = lambda _: True
    found = Found(asked.out, what="a prefill through vLLM's generate, eager, seconds", rows=asked.rows)
    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = max([asked.rows, *asked.lengths])
    spec = load_spec("vllm", asked.model, "float16", device, longest, asked.route)
    engine = VllmEngine(spec)
    engine.use_kernel(MODES[asked.route])
    assert isinstance(engine._model, OneProcess)
    found.add(way=engine._model._stage.way.__name__, looker=type(engine._model._stage.looker).__name__)
    found.add(route=asked.route, load_seconds=round(time.perf_counter() - started, 1), linears=len(engine.tapped),
              chunk_bytes=staging.CHUNK_BYTES, ring_bytes=staging.RING_BYTES, versions=engine.versions())  # fmt: skip
    vocabulary = vocabulary_of(asked.model)
    bench = Bench(engine, token_ids(asked.rows, vocabulary))
    places = {"memory": asked.memory} | ({} if asked.disk is None else {"disk": asked.disk})
    first, after = bench.tapped(NullSink())
    found.add(first_prompt_seconds=first + after)  # with every bias looked at once
    times = measure(bench, places, asked.rounds, asked.slow_rounds)
    seconds = {kind: statistics.median(values) for kind, values in times.items()}
    bare = seconds["bare"]
    ratios = {kind: round(value / bare, 3) for kind, value in seconds.items() if "afterwards" not in kind}
    found.add(seconds=seconds, of_bare=ratios, times=times, written_bytes=bench.bytes, engine_waited=bench.waited)
    if device == "cuda":
        found.add(peak_gpu_bytes=torch.cuda.max_memory_allocated())
        found.add(work={
            "bare": launches(bench.bare), "statistics": launches(lambda: bench.tapped(NullSink())),
            "tensors": launches(lambda: bench.tapped(Nowhere())),
        })  # fmt: skip
    gc.disable()
    by_length: dict[int, dict[str, float]] = {}
    for rows in asked.lengths:
        by_length[rows] = bench.at_length(rows, vocabulary, asked.slow_rounds)
        found.add(by_length=by_length)
    gc.enable()
    if asked.profile is not None:
        works: dict[str, Callable[[], Any]] = {
            "bare": bench.bare, "statistics": lambda: bench.tapped(NullSink()),
            "tensors": lambda: bench.tapped(Nowhere()),
        }  # fmt: skip
        profiles = (f"== {name}\n{public(profiled(work))}" for name, work in works.items())
        asked.profile.write_text("\n".join(profiles))
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
