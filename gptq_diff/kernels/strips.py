"""Strips of 64 columns: the layout that the compiled loops read, and the threads that share them out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from gptq_diff.numerics.fp16 import Float16

STRIP = 64
"""Columns of N in a strip: 128 rows of it are 32 KB in float32, a first-level cache."""

_SMALL = 1 << 21
"""Multiply-adds below which a second thread costs more than it saves (about half a millisecond of work)."""


def to_strips(values_RN: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[R, N] as contiguous [strips, R, 64], N padded with zeros."""
    rows, columns = values_RN.shape
    padded = np.pad(values_RN, ((0, 0), (0, -columns % STRIP)))
    return np.ascontiguousarray(padded.reshape(rows, -1, STRIP).transpose(1, 0, 2))


def from_strips(values_SRC: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """[strips, R, 64] as [R, N] again."""
    rows = values_SRC.shape[1]
    values_RN: npt.NDArray[Any] = values_SRC.transpose(1, 0, 2).reshape(rows, -1)[:, :columns]
    return values_RN


def share_strips(work: Callable[[int, int], None], strips: int, cost: int, threads: int | None) -> None:
    """Call work(first, last) so that all strips are done, in threads where a strip's `cost` (multiply-adds) pays.

    threads: None for one a CPU. Plain threads rather than numba's own, whose default pool ends the process when two
    threads of the caller use it at once; `work` must release the interpreter lock.
    """
    wanted = min(threads or _cpus(), strips, max(1, strips * cost // _SMALL))
    if wanted <= 1:
        work(0, strips)
        return
    pieces = min(strips, 4 * wanted)
    edges = [strips * i // pieces for i in range(pieces + 1)]
    with ThreadPoolExecutor(wanted) as pool:
        for done in [pool.submit(work, *edge) for edge in zip(edges, edges[1:])]:
            done.result()


def canonical_nan(halves: Float16) -> Float16:
    """The same array with one NaN for all NaNs: hardware and numpy differ in their signs and payloads."""
    halves[np.isnan(halves)] = np.float16(np.nan)
    return halves


def _cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
