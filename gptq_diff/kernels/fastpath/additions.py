"""How much the half additions of block results to the output may err: the GPU's atomics have no fixed order."""

from __future__ import annotations

import math

import numpy as np

from gptq_diff.numerics.fp16 import HALF_MIN_ULP, Float16, Float64, ulp_half

_MEAN_ULP_SQUARED = 2.0**-20 * (1 - 0.25) / (2 * math.log(2.0))
"""Mean of (ulp(p) / p)**2 over p whose significand is spread logarithmically over [1, 2)."""


def worst_order(blocks_BMN: Float16) -> Float64:
    """Variance [M, N] of the B - 1 additions, each as coarse as the coarsest partial sum of any order.

    The largest magnitude that a partial sum of any order can have is the sum of the positive block results, or that
    of the negative ones. Sums below 2**-13 are exact: all halves are multiples of 2**-24. NaN or inf where a block is.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = blocks_BMN.astype(np.float64)
        above = np.maximum(blocks, 0).sum(axis=0)
        below = np.maximum(-blocks, 0).sum(axis=0)
        unit = ulp_half(np.maximum(above, below)).astype(np.float64)
        return (len(blocks) - 1) * np.where(unit == HALF_MIN_ULP, 0.0, unit) ** 2 / 12


def random_order(blocks_BMN: Float16) -> Float64:
    """Variance [M, N] of the B - 1 additions, expected over all orders alike.

    With T the sum and Q the sum of squares of B block results, the partial sum of i of them drawn at random has the
    mean square (i T / B)**2 + i (B - i) / (B (B - 1)) * (Q - T**2 / B) (sampling without replacement).
    """
    count = len(blocks_BMN)
    if count == 1:
        return np.zeros(blocks_BMN.shape[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = blocks_BMN.astype(np.float64)
        total2 = blocks.sum(axis=0) ** 2
        scatter = (blocks**2).sum(axis=0) - total2 / count
        steps = np.arange(2, count + 1, dtype=np.float64)
        mean2 = total2 * float((steps**2).sum()) / count**2
        mean2 += scatter * float((steps * (count - steps)).sum()) / (count * (count - 1))
        variance = mean2 * _MEAN_ULP_SQUARED / 12
        return np.where(worst_order(blocks_BMN) == 0, 0.0, variance)
