"""One look at a kernel call where it lies: its figures, copies of x and y, and y's bias added, all in one launch.

What the tap adds to a short prefill is launches and this process's own work, so all of it is done by one kernel of our
own where a GPU takes it (gptq_diff.capture.cuda). HostLooker does the same in main memory, for tests and trials; where
there is neither, calls are copied by torch's operations (gptq_diff.capture.ways).
"""

from __future__ import annotations

import abc
from typing import Any

import torch

from gptq_diff.capture.call import Fused
from gptq_diff.capture.strip import Strip

MOST_PARTS = 8
"""Linears that one kernel computes at once; seen.cu has room for as many."""
INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""By dtype of x and y: the bits of an infinity. No other dtype is looked at."""

Kind = Any
"""What a looker needs to know of one module's calls, made once."""


def figures_of(parts: Fused) -> int:
    """Numbers told of a call: largest finite magnitude (as bits), NaN and infinities, of x and then of every linear."""
    return 3 * (1 + len(parts.widths))


class Looker(abc.ABC):
    """Makes looks for one device."""

    unit: int
    """What K and every width have to be multiples of."""

    def takes(self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """Whether calls of that shape and dtype can be looked at."""
        return (
            x_MK.dtype is y_MN.dtype
            and x_MK.dtype in INFINITY
            and x_MK.dim() == y_MN.dim() == 2
            and x_MK.shape[0] == y_MN.shape[0]
            and 0 < len(parts.widths) <= MOST_PARTS
            and not x_MK.shape[1] % self.unit
            and not parts.unit % self.unit
            and y_MN.shape[1] == sum(parts.widths)
        )

    def adds(self, bias_N: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """Whether a look can add that bias to y, as `y.add_` would."""
        return (
            bias_N.dtype is y_MN.dtype is torch.float16
            and bias_N.device == y_MN.device
            and bias_N.is_contiguous()
            and bias_N.numel() == y_MN.shape[1]
            and not bias_N.data_ptr() % 16
        )

    @abc.abstractmethod
    def kind(self, parts: Fused, inner: int, dtype: torch.dtype) -> Kind:
        """Of calls of those linears with x [M, inner], for `look`."""

    @abc.abstractmethod
    def look(
        self, kind: Kind, rows: int, x_MK: torch.Tensor, y_MN: torch.Tensor, strip: Strip, at: int, told: int,
        bias_N: torch.Tensor | None,
    ) -> bool:  # fmt: skip
        """Look at x [M, K] and y [M, N] of a call; False, and nothing done, where they do not lie as they have to.

        at: offset in the strip's values where x goes, and behind it every linear's columns by themselves; -1 where
        nothing is to be copied. told: offset of the call's figures in the strip's; they are combined with what is
        there. bias_N: added to y once y was read.
        """


class HostLooker(Looker):
    """The same in main memory."""

    unit = 1

    def kind(self, parts: Fused, inner: int, dtype: torch.dtype) -> Kind:  # noqa: ARG002
        """The linears' widths."""
        return parts.widths

    def look(
        self, kind: Kind, rows: int, x_MK: torch.Tensor, y_MN: torch.Tensor, strip: Strip, at: int, told: int,
        bias_N: torch.Tensor | None,
    ) -> bool:  # fmt: skip
        """By torch's operations."""
        if not (x_MK.is_contiguous() and y_MN.is_contiguous()) or len(x_MK) != rows:
            return False
        assert strip.told is not None
        for values in (x_MK, *torch.split(y_MN, list(kind), dim=1)):
            if at >= 0:
                strip.values.narrow(0, at, values.numel()).copy_(values.reshape(-1))
                at += values.numel()
            _tell(strip.told.narrow(0, told, 3), values)
            told += 3
        if bias_N is not None:
            y_MN.add_(bias_N)
        return True


def _tell(told: torch.Tensor, values: torch.Tensor) -> None:
    """Combine those values' figures with what was told."""
    finite = values[torch.isfinite(values)].abs()
    if finite.numel():
        told[0].clamp_(min=int(finite.max().view(torch.int16)))
    told[1] += torch.isnan(values).sum()
    told[2] += torch.isinf(values).sum()
