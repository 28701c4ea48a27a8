"""From the residual stream to the logits that the first token is chosen from: the last norm and the output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision
from gptq_diff.numerics.floors import SINGLE_RMS

MOST = 64
"""Channels whose rounding is followed one by one: a massive one can carry nearly all of it."""
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
    """float64 [1, V] of every row, all in one pass over the head's weight, as stored, in float32.

    Its rounding: the row's own, products summed in float32 (here as well), the logit. Of the row's channels the MOST
    with the largest error are taken with their own weights, the others as if a token's weight were spread over them.
    """
    if not hidden:
        return []
    width = weight_VH.shape[1]
    x_HM = torch.cat([h.computed.exact_TN.float() for h in hidden]).T.contiguous()
    v_HM = torch.cat([h.computed.variance_TN.float() for h in hidden]).T + SINGLE_RMS**2 * width * x_HM.square()
    most = torch.argsort(v_HM.sum(dim=1), descending=True)[:MOST]
    rest_M = (v_HM.sum(dim=0) - v_HM[most].sum(dim=0)) / max(width - len(most), 1)
    exact_VM = torch.empty(weight_VH.shape[0], len(hidden), dtype=torch.float64)
    variance_VM = torch.empty_like(exact_VM)
    for first in range(0, weight_VH.shape[0], STRIP):
        w = weight_VH[first : first + STRIP].float()
        own2 = w[:, most].square_()
        rest2_V = torch.linalg.vector_norm(w, dim=1).square_() - own2.sum(dim=1)
        exact_VM[first : first + STRIP] = w @ x_HM
        variance_VM[first : first + STRIP] = (own2 @ v_HM[most]).addr_(rest2_V.clamp_min_(0.0), rest_M)
    found = []
    for i, h in enumerate(hidden):
        exact = exact_VM[:, i][None].contiguous()
        variance = variance_VM[:, i][None] + h.precision.rms**2 * exact.square() + h.precision.least**2
        found.append(Computed(exact, variance, h.computed.ok_T, h.computed.mixed_T, float(x_HM[:, i].abs().amax())))
    return found
