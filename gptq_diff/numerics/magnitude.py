"""How large a tensor is, and how much of it is not a number, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Magnitude(NamedTuple):
    """Largest finite absolute value (0.0 if there is none), count of NaN, count of plus or minus infinity."""

    absmax: float
    nan: int
    inf: int

    @property
    def nonfinite(self) -> int:
        """NaN and infinities together."""
        return self.nan + self.inf


def row_absmax(values_MN: torch.Tensor) -> torch.Tensor:
    """[M], same dtype: the largest magnitude of every row, NaN where it has one; no copy of the matrix is made."""
    largest_M: torch.Tensor = torch.maximum(values_MN.amin(dim=1).neg_(), values_MN.amax(dim=1)).abs_()  # no minus zero
    return largest_M


def magnitude(t: torch.Tensor) -> Magnitude:
    """Magnitude of a floating-point tensor of any shape; non-finite values are counted first and apart."""
    if t.numel() == 0:
        return Magnitude(0.0, 0, 0)
    low, high = torch.aminmax(t)  # NaN propagates, so one pass tells whether all is finite
    top = max(-float(low), float(high))
    if top < float("inf"):
        return Magnitude(top, 0, 0)
    finite = torch.isfinite(t)
    nan = int(torch.isnan(t).sum())
    inf = int(t.numel() - int(finite.sum())) - nan
    kept = t[finite]
    return Magnitude(float(kept.abs().max()) if kept.numel() else 0.0, nan, inf)
