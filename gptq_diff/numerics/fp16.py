"""IEEE half precision by definition, on numpy arrays: rounding once, the spacing of halves, fused multiply-adds.

Everything here is pure and slow but obvious; the compiled loops of `gptq_diff.kernels` must give the same bits.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

HALF_MAX = 65504.0
"""The largest finite half."""

HALF_OVERFLOW = 65520.0
"""Magnitudes from here on round to infinity: the midpoint between 65504 and the next power of two."""

HALF_MIN_ULP = 2.0**-24
"""The smallest half above zero, and the spacing of all subnormal halves."""


def ulp_half(values: npt.NDArray[Any]) -> Float32:
    """The spacing of halves at each value's own binade, float32 of the same shape; 2**-24 at and below 2**-14.

    Infinite values have an infinite spacing; NaN has none (NaN).
    """
    magnitude = np.abs(values.astype(np.float32))
    normal = np.where(np.isfinite(magnitude), np.maximum(magnitude, np.float32(2.0**-14)), np.float32(1))
    spacing = np.ldexp(np.float32(1), np.frexp(normal)[1] - 11).astype(np.float32)
    return cast("Float32", np.where(np.isfinite(magnitude), spacing, magnitude))


def round_to_half(values: Float64) -> Float16:
    """The nearest half, ties to even, subnormals kept, 65520 and more to infinity: one rounding from float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float16)


def add_to_odd(a: Float64, b: Float64) -> Float64:
    """The sum a + b in float64 rounded to odd: exact, or the neighbour of the exact sum whose last bit is 1.

    A sum rounded to odd can be rounded again to any format at least two bits shorter, with the result that one
    rounding of the exact sum would have given (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums:
    proved algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008). The error of the rounded
    sum is Knuth's TwoSum. Infinite and NaN sums are returned as they are.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.asarray(a + b, dtype=np.float64)
        part = total - a
        error = (a - (total - part)) + (b - part)
        toward = np.sign(error) * np.sign(total)
    bits = total.view(np.int64)
    move = np.where(np.isfinite(error) & (bits & 1 == 0), toward, 0.0)
    return (bits + move.astype(np.int64)).view(np.float64)


def fma_half(a: npt.NDArray[Any], b: npt.NDArray[Any], c: npt.NDArray[Any]) -> Float16:
    """The product a * b plus c rounded once to half; the values have at most 24 significant bits each."""
    with np.errstate(over="ignore", invalid="ignore"):
        return round_to_half(add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)))


def fma_single(a: npt.NDArray[Any], b: npt.NDArray[Any], c: npt.NDArray[Any]) -> Float32:
    """The product a * b plus c rounded once to float32; a, b and c hold values of at most 24 significant bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
        return total.astype(np.float32)
