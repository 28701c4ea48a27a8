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

MOST_PARTS = 8
"""Linears that one kernel computes at once; seen.cu has room for as many."""
INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""By dtype of x and y: the bits of an infinity. No other dtype is looked at."""

Prepared = Any
"""What a looker needs of a place to look at calls there again and again."""


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
            and 0 < len(parts.widths) <= MOST_PARTS
            and not x_MK.shape[1] % self.unit
            and not parts.unit % self.unit
            and y_MN.shape[1] == sum(parts.widths)
            and max(x_MK.numel(), y_MN.numel()) // self.unit < 2**31
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
    def prepared(
        self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, to: torch.Tensor | None, told: torch.Tensor,
        bias_N: torch.Tensor | None,
    ) -> Prepared:  # fmt: skip
        """For `look` at calls like that one.

        to: flat, as many values as x and y have; x goes there, then every linear's columns by themselves. None: nothing
        is copied. told: int32 [figures_of(parts)], zeros; figures are combined with what is there. bias_N: added to y
        once y was read. All three are held by whoever asks, as long as they are looked at.
        """

    @abc.abstractmethod
    def look(self, prepared: Prepared, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """Look at x [M, K] and y [M, N] of a call; False, and nothing done, where they do not lie as they have to."""


class HostLooker(Looker):
    """The same in main memory."""

    unit = 1

    def prepared(
        self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, to: torch.Tensor | None, told: torch.Tensor,
        bias_N: torch.Tensor | None,
    ) -> Prepared:  # fmt: skip
        """What it was given, the copy's places by themselves."""
        sizes = [x_MK.numel(), *(y_MN.shape[0] * width for width in parts.widths)]
        return parts.widths, None if to is None else torch.split(to, sizes), told, bias_N

    def look(self, prepared: Prepared, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """By torch's operations."""
        if not (x_MK.is_contiguous() and y_MN.is_contiguous()):
            return False
        widths, places, told, bias_N = prepared
        for i, values in enumerate((x_MK, *torch.split(y_MN, list(widths), dim=1))):
            if places is not None:
                places[i].copy_(values.reshape(-1))
            _tell(told[3 * i : 3 * i + 3], values)
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
