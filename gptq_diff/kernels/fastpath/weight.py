"""A quantised weight unpacked once, in the layout that the compiled loops read: strips of 64 columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gptq_diff.kernels.fastpath.chains import CHAINS, refusal
from gptq_diff.kernels.strips import from_strips, to_strips


@dataclass(frozen=True)
class PreparedWeight:
    """Unscaled codes and their scales, N padded with zeros to whole strips of 64 columns.

    codes: code - zero, [strips, K, 64], int8 (int16 for 8 bit).
    scales: the half scales widened, [strips, G, 64], float32.
    group_size: rows of K that share a scale, in the kernel's own row order.
    bits: 2, 3, 4 or 8.
    columns: N without the padding.
    """

    codes: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]
    group_size: int
    bits: int
    columns: int

    @property
    def rows(self) -> int:
        """K."""
        return int(self.codes.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.codes.nbytes + self.scales.nbytes


def prepare(codes_KN: npt.NDArray[Any], scales_GN: npt.NDArray[Any], group_size: int, bits: int) -> PreparedWeight:
    """Bring integer codes minus zeros [K, N] and half scales [G, N] into strips.

    Rows must be in the kernel's order (sorted by group). Raises ValueError for what the kernel cannot multiply.
    """
    rows, columns = codes_KN.shape
    reason = refusal(bits, rows, group_size)
    groups = -(-rows // group_size)
    if not reason and scales_GN.shape != (groups, columns):
        reason = f"scales have the shape {tuple(scales_GN.shape)}, not {(groups, columns)}"
    if not reason and scales_GN.dtype != np.float16:
        reason = f"scales are {scales_GN.dtype}, not float16"
    if not reason and codes_KN.size:
        largest = max(int(codes_KN.max()), -int(codes_KN.min()))
        if largest > CHAINS[bits].largest_code:
            reason = f"a code minus zero of magnitude {largest} does not come from {bits} bit"
    if reason:
        raise ValueError(reason)
    narrow = codes_KN.astype(np.int16 if bits == 8 else np.int8, copy=False)
    return PreparedWeight(to_strips(narrow), to_strips(scales_GN.astype(np.float32)), group_size, bits, columns)


def unstripped_codes(weight: PreparedWeight) -> npt.NDArray[Any]:
    """The codes as [K, N] again."""
    return from_strips(weight.codes, weight.columns)


def unstripped_scales(weight: PreparedWeight) -> npt.NDArray[np.float32]:
    """The scales as [G, N] float32 again."""
    return from_strips(weight.scales, weight.columns)
