"""What one kernel call multiplied by: a linear, or a tensor-parallel rank's rows of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import code_rows, dequantise, group_of_row, unscaled_codes
from gptq_diff.checkpoint.packing import codes_per_period, unpack_zeros
from gptq_diff.kernels.tiled import TiledWeight, can_tile

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class Share:
    """The weight, before and after the scale, rows first to first + count - 1 of a linear; unpacked when asked for.

    whole: the share of all rows that this is a part of; None where it is all.
    """

    linear: PackedLinear
    first: int
    count: int
    whole: Share | None = None

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.linear.spec.bits

    @cached_property
    def codes_KN(self) -> torch.Tensor:  # noqa: N802  shapes are part of the names here
        """int16, code - zero."""
        return unscaled_codes(self.linear) if self.whole is None else self.whole.codes_KN[self._rows]

    @cached_property
    def w_KN(self) -> torch.Tensor:  # noqa: N802
        """float32, exact, columns with a non-finite scale set to zero."""
        if self.whole is not None:
            return self.whole.w_KN[self._rows]
        w_KN = dequantise(self.linear)
        w_KN[:, self.broken_N] = 0.0
        return w_KN

    @cached_property
    def broken_N(self) -> torch.Tensor:  # noqa: N802
        """bool: the columns with a NaN or infinite scale."""
        return ~torch.isfinite(self.linear.scales.float()).all(dim=0)

    @cached_property
    def group_K(self) -> torch.Tensor:  # noqa: N802
        """int64, the group of every row."""
        return group_of_row(self.linear)[self._rows]

    @cached_property
    def order_K(self) -> torch.Tensor | None:  # noqa: N802
        """int64, the rows in the fast path's order, sorted by group; None where they lie so."""
        return None if bool((self.group_K.diff() >= 0).all()) else torch.argsort(self.group_K, stable=True)

    @cached_property
    def tiled(self) -> TiledWeight | None:
        """The whole linear to multiply by tile by tile; None where it is small, or this is a part of it."""
        return TiledWeight.of(self.linear, self.broken_N) if self.whole is None and can_tile(self.linear) else None

    @cached_property
    def largest_code(self) -> int:
        """The largest magnitude that code - zero can have with these zero points."""
        spec = self.linear.spec
        zeros_GN = unpack_zeros(self.linear.qzeros, spec.bits, spec.out_features, spec.format)
        return max(int(zeros_GN.max()), (1 << spec.bits) - 1 - int(zeros_GN.min()))

    def code_rows(self, first: int, last: int) -> torch.Tensor:
        """int16, code - zero of rows first to last - 1 of this share; both at word borders of the packed weight.

        Of a small linear all are unpacked once: a few rows at a time cost more, for every input that is looked at.
        """
        packed = self.whole is None and "codes_KN" not in self.__dict__ and can_tile(self.linear)
        if not packed or first % codes_per_period(self.bits) or last % codes_per_period(self.bits):
            return self.codes_KN[first:last]
        return code_rows(self.linear, first, last)

    def rows(self, first: int, count: int) -> Share:
        """Rows first to first + count - 1."""
        if first == 0 and count == self.count:
            return self
        return Share(self.linear, self.first + first, count, self.whole or self)

    @property
    def _rows(self) -> slice:
        return slice(self.first, self.first + self.count)


def share_of(linear: PackedLinear) -> Share:
    """The whole linear."""
    return Share(linear, 0, linear.spec.in_features)
