"""Rounding to bfloat16 in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def bfloat16(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32 values rounded to the nearest bfloat16, ties to even; NaN and infinities pass."""
    wide = np.ascontiguousarray(values, dtype=np.float32)
    bits = wide.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(wide), rounded, wide)
