"""What one kernel call multiplied by: a linear, or a tensor-parallel rank's rows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import dequantise, group_of_row, unscaled_codes

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class Share:
    """The weight, before and after the scale.

    codes_KN: int16, code - zero. w_KN: float32, exact, columns with a non-finite scale set to zero. group_K: int64, the
    group of every row. order_K: int64, the rows in the fast path's order, sorted by group; None where they lie so.
    bits: of a code.
    """

    codes_KN: torch.Tensor
    w_KN: torch.Tensor
    group_K: torch.Tensor
    order_K: torch.Tensor | None
    bits: int

    def rows(self, first: int, count: int) -> Share:
        """Rows first to first + count - 1."""
        if first == 0 and count == len(self.codes_KN):
            return self
        rows, group_K = slice(first, first + count), self.group_K[first : first + count]
        return Share(self.codes_KN[rows], self.w_KN[rows], group_K, _order(group_K), self.bits)


def share_of(linear: PackedLinear) -> Share:
    """The whole linear."""
    w_KN, group_K = dequantise(linear), group_of_row(linear)
    finite_N = torch.isfinite(linear.scales.float()).all(dim=0)
    if not bool(finite_N.all()):
        w_KN[:, ~finite_N] = 0.0
    return Share(unscaled_codes(linear), w_KN, group_K, _order(group_K), linear.spec.bits)


def _order(group_K: torch.Tensor) -> torch.Tensor | None:
    return None if bool((group_K.diff() >= 0).all()) else torch.argsort(group_K, stable=True)
