"""What this machine allows: reading the packed weights once, and multiplying as fast as torch's sgemm can."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch

from gptq_diff.checkpoint.reader import Checkpoint

SIDE = 2048
"""Of the square matrices whose product is taken for the peak."""


@dataclass(frozen=True)
class Floors:
    """weights: quantised weights. packed_bytes: they take. read_rate: bytes a second, mapped and in the page cache.

    peak, peak_rows: multiply-adds a second of float32 products, of squares and of `rows` rows by 5120 x 27648.
    """

    weights: int
    packed_bytes: int
    read_rate: float
    peak: float
    peak_rows: float
    rows: int

    def seconds(self, products: float, reads: float) -> float:
        """The least that so many products with all weights, and so many readings of them, could take."""
        return max(products * self.rows * self.weights / self.peak, reads * self.packed_bytes / self.read_rate)


def floors(checkpoint: Checkpoint, rows: int) -> Floors:
    """Measured now; the checkpoint's packed weights are in the page cache afterwards, if there is room for them."""
    packed = [checkpoint.packed(spec.name) for spec in checkpoint.layers]
    size = sum(linear.nbytes for linear in packed)

    def read() -> None:
        for linear in packed:
            linear.qweight.max()

    read()
    square, x = torch.randn(SIDE, SIDE), torch.randn(rows, 5120)
    wide = torch.randn(5120, 27648)
    return Floors(
        weights=sum(spec.in_features * spec.out_features for spec in checkpoint.layers), packed_bytes=size,
        read_rate=sum(linear.qweight.nbytes for linear in packed) / _best(read, 2),
        peak=SIDE**3 / _best(lambda: square @ square, 5), peak_rows=rows * wide.numel() / _best(lambda: x @ wide, 5),
        rows=rows,
    )  # fmt: skip


def _best(work: Callable[[], object], times: int) -> float:
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def size_of(directory: Path) -> int:
    """Bytes of all files, those that links lead to included."""
    return sum(f.stat().st_size for f in directory.iterdir())
