"""The rate at which two captures on disk are compared: the inherited error of every linear of SmolLM2's prefill."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import smollm2
from benchmarks.capture import full_capture
from benchmarks.figure import Figure, median, side_by_side
from gptq_diff.capture.store import CaptureReader
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge import inherited
from gptq_diff.engines.hf import HfEngine

LENGTHS = (37, 200)
"""Tokens: the demo's short prompt, where opening files and finding tensors costs most, and a longer one."""


def figures() -> list[Figure]:
    """Bytes of both captures' inputs, each counted once, over the time to read and compare them."""
    mine, reference = smollm2.engine("float16", "fp16"), smollm2.engine("float32", "exact")
    return [figure for length in LENGTHS for figure in compared(mine, reference, length)]


def compared(mine: HfEngine, reference: HfEngine, length: int) -> list[Figure]:
    """The rates for a prompt of that many tokens."""
    ids = (1, *range(100, 99 + length))
    with tempfile.TemporaryDirectory() as scratch:
        a, b = Path(scratch) / "hf-fp16", Path(scratch) / "hf-fp32"
        full_capture(mine, a, ids)
        full_capture(reference, b, ids)
        times = side_by_side({
            "judge": lambda: judge_path(a, b),
            "opening": lambda: Captured(CaptureReader(a), CaptureReader(b)),
            "plain": lambda: plain(a, b),
            "reading": lambda: reading(a, b),
        })  # fmt: skip
        inputs = judge_path(a, b)
        everything = plain(a, b)
    opening, judge = median(times["opening"]), median(times["judge"])
    note = f"{inputs / 1e6:.0f} MB; opening both captures takes {opening * 1e3:.0f} ms of {judge * 1e3:.0f}"
    what = f"stored inputs compared, {length} tokens"
    return [
        Figure(f"{what}, as the judge does", inputs / judge / 1e9, "GB/s", least=2.0, note=note),
        Figure("  the same without opening", inputs / (judge - opening) / 1e9, "GB/s"),
        Figure("  floor: in and out, l2 and max, plain torch", everything / median(times["plain"]) / 1e9, "GB/s"),
        Figure("  floor: reading alone (one sum)", everything / median(times["reading"]) / 1e9, "GB/s"),
    ]  # fmt: skip


def judge_path(mine: Path, reference: Path) -> int:
    """The inherited error of every linear; returns the bytes compared."""
    captured = Captured(CaptureReader(mine), CaptureReader(reference))
    captured.compare_inputs()
    compared, seen = 0, set()
    rows = captured.calls(captured.reader.manifest.order[0])[0].x_MK.shape[0]
    finite_M, starts = torch.ones(rows, dtype=torch.bool), np.array([0, rows])  # the judge has them from its sums
    for layer in captured.reader.manifest.order:
        calls = captured.calls(layer)
        found = inherited(calls, finite_M, starts)
        assert len(found) == 1
        key = captured.reader.stored_key(0, layer, "in")
        compared += (
            0 if key in seen else sum(c.x_MK.nbytes + 4 * c.x_MK.numel() for c in calls)
        )  # the reference: float32
        seen.add(key)
    return compared


def plain(mine: Path, reference: Path) -> int:
    """The same two figures of every stored tensor, nothing asked twice; returns the bytes compared."""
    a, b = CaptureReader(mine), CaptureReader(reference)
    compared = 0
    for key, place in a.manifest.where.items():
        if not place.startswith("="):
            step, layer, side = key.split("/")
            theirs = b.tensor(int(step), layer, side)
            ours = a.tensor(int(step), layer, side)
            gap = torch.sub(ours, theirs)
            float(torch.linalg.vector_norm(gap)), float(torch.linalg.vector_norm(theirs)), float(gap.abs_().max())
            compared += ours.nbytes + theirs.nbytes
    return compared


def reading(mine: Path, reference: Path) -> None:
    """Every stored byte looked at once."""
    for directory in (mine, reference):
        reader = CaptureReader(directory)
        for key, place in reader.manifest.where.items():
            if not place.startswith("="):
                step, layer, side = key.split("/")
                reader.tensor(int(step), layer, side).view(torch.int16).max()
