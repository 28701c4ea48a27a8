"""From the residual stream to the logits that the first token is chosen from: the last norm and the output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision
from gptq_diff.numerics.floors import SINGLE_RMS

STRIP = 8192
"""Rows of the head's weight that are widened at a time."""


@dataclass(frozen=True)
class Hidden:
    """One row that a head is given, computed and not captured.

    computed: [1, H] after the last norm. precision: of the skeleton that runs it.
    """

    computed: Computed
    precision: Precision


def logits(hidden: Sequence[Hidden], weight_VH: torch.Tensor) -> list[Computed]:
    """float64 [1, V] of every row, all in one pass over the head's weight, as stored.

    Its rounding: the row's own, products summed in float32, the logit.
    """
    if not hidden:
        return []
    wide = torch.float64 if any(h.precision.wide == torch.float64 for h in hidden) else torch.float32
    x_HM = torch.cat([h.computed.exact_TN.to(wide) for h in hidden]).T.contiguous()
    v_HM = torch.cat([h.computed.variance_TN.to(wide) for h in hidden]).T.contiguous()
    v_HM += SINGLE_RMS**2 * weight_VH.shape[1] / 2 * x_HM.square()
    exact_VM = torch.empty(weight_VH.shape[0], len(hidden), dtype=torch.float64)
    variance_VM = torch.empty_like(exact_VM)
    strips = [hidden[0].precision.dtype] if len({h.precision.dtype for h in hidden}) == 1 else [None]
    for first in range(0, weight_VH.shape[0], STRIP):
        part = weight_VH[first : first + STRIP]
        w = (part if strips[0] is None else part.to(strips[0])).to(wide)
        exact_VM[first : first + STRIP] = (w @ x_HM).double()
        variance_VM[first : first + STRIP] = (w.square_() @ v_HM).double()
    found = []
    for i, h in enumerate(hidden):
        exact = exact_VM[:, i][None].contiguous()
        variance = variance_VM[:, i][None] + h.precision.rms**2 * exact.square() + h.precision.least**2
        found.append(Computed(exact, variance, h.computed.ok_T, h.computed.mixed_T, float(x_HM[:, i].abs().amax())))
    return found
