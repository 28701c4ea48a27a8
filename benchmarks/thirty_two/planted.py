"""An exact gain shift written into a checkpoint in place, and taken back: a copy of 18 GB would say no more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from gptq_diff.checkpoint.header import TensorEntry
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.models.gain_shift import shift_linears
from gptq_diff.models.options import GainShift


@contextlib.contextmanager
def planted(model: Path, shift: GainShift) -> Iterator[str]:
    """The name of the linear that overflows inside; outside, every byte is as it was."""
    names = [f"model.layers.{shift.block}.mlp.{part}_proj" for part in ("up", "down")]
    with open_checkpoint(model) as checkpoint:
        linears = shift_linears(*(checkpoint.packed(name) for name in names), shift)
        entries = [checkpoint.entry(f"{name}.scales") for name in names]
        before = [_read(entry) for entry in entries]
        after = [linear.scales.contiguous().view(torch.uint8).numpy().tobytes() for linear in linears]
    try:
        for entry, data in zip(entries, after):
            _write(entry, data)
        yield names[1]
    finally:
        for entry, data in zip(entries, before):
            _write(entry, data)


def _read(entry: TensorEntry) -> bytes:
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.end - entry.start)


def _write(entry: TensorEntry, data: bytes) -> None:
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        file.write(data)
