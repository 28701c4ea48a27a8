"""`gptq-diff demo` from start to end, its model built before, and the rate of the judging in it beside its floor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks import smollm2
from benchmarks.figure import Figure, median, ratio, side_by_side
from benchmarks.watched import Watched, run_watched
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare.judge_run import judge_captures, open_captures

JUDGING_ROUNDS = 3


def figures() -> list[Figure]:
    """The demo once, as it takes a while; its captures are then judged again in this process."""
    smollm2.model()
    with tempfile.TemporaryDirectory() as scratch:
        watched = run_watched(["demo"], Path(scratch) / "run")
        return [*_split(watched), *_judging(RunDir.open_finished(Path(scratch) / "run"), watched)]


def _split(watched: Watched) -> list[Figure]:
    """Where the time went; backends of one dtype share a load."""
    results = watched.report["results"]
    loads = {r["backend"] == "hf-fp32": r["seconds"]["load"] for r in results}
    load, generate = sum(loads.values()), sum(r["seconds"]["generate"] for r in results)
    rest = watched.wall - load - generate - watched.judged
    return [
        Figure("gptq-diff demo, model already built", watched.wall, "s", most=60.0),
        Figure("  loading, two workers", load, "s"),
        Figure("  generating, 5 backends, 2 prompts, captured", generate, "s"),
        Figure("  judging", watched.judged, "s"),
        Figure("  the rest: starting three interpreters, reporting", rest, "s"),
    ]


def _judging(run: RunDir, watched: Watched) -> list[Figure]:
    """All captures of the demo, against dequantising every layer once and multiplying all rows of it once."""
    keys = [(r["backend"], r["prompt"]) for r in watched.report["results"]]
    with open_checkpoint(smollm2.model()) as checkpoint:
        stacked = _rows(run, keys, checkpoint)
        times = side_by_side({
            "judge": lambda: judge_captures(open_captures(run, keys, "hf-fp32"), checkpoint, checkpoint, _silent),
            "floor": lambda: [x @ dequantise(checkpoint.packed(name)) for name, x in stacked.items()],
        }, JUDGING_ROUNDS)  # fmt: skip
        macs = sum(x.numel() * checkpoint.packed(name).spec.out_features for name, x in stacked.items())
    note = f"{macs / 1e9:.0f} G multiply-adds in {median(times['judge']):.1f} s; floor {median(times['floor']):.1f} s"
    return [
        Figure("judging the demo's captures", macs / median(times["judge"]) / 1e9, "G multiply-adds/s", note=note),
        Figure("  floor: dequantise once, multiply once", macs / median(times["floor"]) / 1e9, "G multiply-adds/s"),
        Figure("  time, of the floor", ratio(times, "judge", "floor"), "times"),
    ]


def _rows(run: RunDir, keys: list[tuple[str, str]], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every captured row of each linear, float32."""
    captures = open_captures(run, keys, "hf-fp32").values()
    return {
        spec.name: torch.cat([call.x_MK.float() for captured in captures for call in captured.calls(spec.name)])
        for spec in checkpoint.layers
    }


def _silent(done: int, total: int) -> None:
    """No progress."""
