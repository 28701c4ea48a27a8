"""Where a run is judged: on a GPU where this interpreter's torch has one with room, else on the CPU.

The verdict is the same: weights are dequantised exactly on either, products are summed in float64 on a GPU and in
float32 or better on the CPU, and the floors are the same formulas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.brought import brought

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.records import LayerSpec

CPU = torch.device("cpu")
BYTES_PER_WEIGHT = 24
"""What judging a linear takes of a GPU's memory at its peak: codes, zeros, scales by row, W, and rows."""
AT_A_TIME = 3
"""Linears that headroom is measured of together on a GPU; at 32B's size each takes about 2 GB there."""
LOADED = 1.5
"""What an engine takes of a GPU's memory, in sizes of its checkpoint: 1.2 were measured at 32B's size."""


def judging_device(asked: str, layers: Sequence[LayerSpec]) -> torch.device:
    """The device of --device, "" and "auto" being a GPU if there is one; the CPU where there is none with room."""
    if asked == "cpu" or not torch.cuda.is_available():
        return CPU
    device = torch.device(asked if asked.startswith("cuda") else "cuda")
    largest = max((spec.in_features * spec.out_features for spec in layers), default=0)
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > BYTES_PER_WEIGHT * largest else CPU


def room_beside(device: torch.device, judge: Checkpoint, loaded: Checkpoint) -> bool:
    """Whether a GPU can hold an engine with that checkpoint, and judge meanwhile; never on a CPU.

    An engine's own work leaves a CPU no time, while a machine with a GPU has cores to spare.
    """
    if device.type == "cpu":
        return False
    largest = max((spec.in_features * spec.out_features for spec in judge.layers), default=0)
    free, _ = torch.cuda.mem_get_info(device)
    return free > LOADED * loaded.nbytes + (1 + AT_A_TIME) * BYTES_PER_WEIGHT * largest


def linears_on(
    device: torch.device, checkpoint: Checkpoint, specs: Sequence[LayerSpec]
) -> Iterator[tuple[LayerSpec, PackedLinear]]:
    """Every linear, in order, on that device; for a GPU the next ones are read and sent while one is worked on."""
    if device.type == "cpu":
        yield from ((spec, checkpoint.packed(spec.name)) for spec in specs)
        return
    yield from brought(checkpoint, specs, device)


@contextlib.contextmanager
def given_back(device: torch.device) -> Iterator[None]:
    """Afterwards torch keeps none of the GPU's memory that is not in use: the next engine wants it."""
    try:
        yield
    finally:
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
