"""How near a layer's fp16 lanes come to overflow: the largest partial lane sum, without any rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from gptq_diff.kernels.fastpath.chains import CHAINS
from gptq_diff.kernels.fastpath.weight import PreparedWeight, unstripped_codes
from gptq_diff.numerics.fp16 import Float16, Float64

_BATCH = 32
"""Words that are looked at together."""


@dataclass(frozen=True)
class LaneSum:
    """The partial sum of largest magnitude over all rows, columns, words and lanes.

    value: exact, before the scale, signed; 65520 and more in magnitude is infinite in a half lane (8 bit adds its
        products in float32, where it is harmless).
    row, column: of y. k: first row of K of its word, in the kernel's order.
    rows: the rows of K whose products are in the sum, in that order too.
    """

    value: float
    row: int
    column: int
    k: int
    rows: tuple[int, ...]


def largest_lane_sum(x_MK: Float16, weight: PreparedWeight) -> LaneSum | None:
    """`largest_chain_sum` for a weight that was brought into strips before."""
    codes_KN = unstripped_codes(weight)
    largest_code = max(int(codes_KN.max(initial=0)), -int(codes_KN.min(initial=0)))
    return largest_chain_sum(x_MK, lambda first, last: codes_KN[first:last], largest_code, weight.bits)


CodeRows = Callable[[int, int], npt.NDArray[Any]]
"""Gives code - zero of the rows of K from the first number to before the second, [rows, N] integers."""


def largest_chain_sum(x_MK: Float16, code_rows: CodeRows, largest_code: int, bits: int) -> LaneSum | None:
    """The largest partial lane sum of that multiplication; None when x has no finite row.

    code_rows: asked for one word at a time, rows in the kernel's order like the columns of x; K a multiple of the word.
    largest_code: no code - zero is of larger magnitude.
    Rows of x with NaN or infinities are left out. Words are taken in the order of sum|x| * max|code|, an upper bound
    of their sums, until none that is left can pass the largest sum found. Sums are exact in float64.
    """
    chain = CHAINS[bits]
    lanes, stride = (2, 2) if chain.lane else (1, 1)
    finite_M = np.flatnonzero(np.isfinite(x_MK).all(axis=1))
    in_features = x_MK.shape[1]
    words = in_features // chain.word
    # one row a lane: [finite M * words * lanes, products]
    x = x_MK[finite_M].astype(np.float64).reshape(len(finite_M), words, chain.word // stride, lanes).swapaxes(2, 3)
    x = x.reshape(-1, chain.word // stride)
    bounds = np.abs(x).sum(axis=1) * largest_code
    order = np.argsort(-bounds)
    best: LaneSum | None = None
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        if best is not None and bounds[batch[0]] <= abs(best.value):
            break
        for index in batch.tolist():
            m, word, lane = index // (words * lanes), index // lanes % words, index % lanes
            k = word * chain.word
            rows = range(k + lane, k + chain.word, stride)
            sums: Float64 = np.cumsum(x[index][:, None] * code_rows(k, k + chain.word)[lane::stride], axis=0)
            step, column = divmod(int(np.abs(sums).argmax()), sums.shape[1])
            if best is None or abs(sums[step, column]) > abs(best.value):
                value = float(sums[step, column])
                best = LaneSum(value, int(finite_M[m]), column, k, tuple(rows[: step + 1]))
    return best
