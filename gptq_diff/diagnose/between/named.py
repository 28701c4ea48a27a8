"""The name of a wrong interval, and what computes it as it was computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision, shares


@dataclass(frozen=True)
class Named:
    """name: of the interval. why: what reproduces the captured values, in words; "" where nothing that is known does.

    how: one word for `why`, the same wherever the same went wrong.
    stream: the residual stream as the engine has it, where that is what is wrong and it is known.
    lost_T: bool, rows whose stream is wrong and not known; None for none.
    """

    name: str
    why: str = ""
    how: str = ""
    stream: torch.Tensor | None = None
    lost_T: torch.Tensor | None = None


def explains(computed: Computed, captured_TN: torch.Tensor, precision: Precision) -> bool:
    """Whether the captured values are within rounding of these, over all rows."""
    (found,) = shares(computed, captured_TN, [slice(0, captured_TN.shape[0])], precision)
    return found.excess is not None and found.excess <= 1.0 and not found.lost.within


def number(value: float) -> str:
    """Three digits, as people write numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
