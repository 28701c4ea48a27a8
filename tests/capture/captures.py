"""Small captures for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gptq_diff.capture.store import CaptureWriter, Manifest
from gptq_diff.capture.tap import BIAS, Call, Sink, Tap


class KeepingSink(Sink):
    """Everything that a tap hands on; biases apart, by linear: some runs of one row, and the row with its bias."""

    wants_tensors = True

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.biases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.tensors: dict[tuple[int, str], tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        if call.part == BIAS:
            assert x_MK is not None
            assert y_MN is not None
            self.biases[call.layer] = (x_MK, y_MN)
            return
        self.calls.append(call)
        self.tensors[call.step, call.layer] = (x_MK, y_MN)


EMPTY = Manifest(
    backend="hf-fp16", prompt="p1", order=(), kernels={}, skipped={}, steps=1, tokens=(7,), logits_finite=(True,),
    cached_rows=0, forced=False, where={}, bytes_written=0, seconds={"generate": 0.5},
)  # fmt: skip

LAYERS = ("q", "k", "v", "o", "down")


def make_inputs(step: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """What each layer gets: q, k and v the very same tensor."""
    rows = 3 if step == 0 else 1
    generator = torch.Generator().manual_seed(step)
    x, y, z = (torch.randn(rows, k, generator=generator).to(dtype) for k in (8, 4, 16))
    return {"q": x, "k": x, "v": x, "o": y, "down": z}


def make_outputs(step: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """What each layer gives: a multiple of its input that depends on the layer."""
    return {name: x * (i + 2) for i, (name, x) in enumerate(make_inputs(step, dtype).items())}


def write_capture(
    directory: Path, *, dtype: torch.dtype = torch.float16, steps: int = 2, block_bytes: int = 2**20
) -> CaptureWriter:
    """A finished capture of LAYERS through a real tap."""
    writer = CaptureWriter(directory, block_bytes)
    tap = Tap(frozenset(LAYERS), writer)
    for step in range(steps):
        tap.begin_step(step)
        inputs, outputs = make_inputs(step, dtype), make_outputs(step, dtype)
        for name in LAYERS:
            tap.record(name, inputs[name], outputs[name], f"path-{name}")
        tap.end_step()
    writer.close()
    manifest = replace(
        EMPTY, order=tuple(tap.order), kernels=writer.kernels, where=writer.where, steps=steps,
        bytes_written=writer.bytes_written,
    )  # fmt: skip
    writer.finish(manifest, torch.arange(5, dtype=torch.float16))
    return writer
