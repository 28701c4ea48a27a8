"""What is wrong where logits are not those of the residual stream: the last sum, the last norm, or the output head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.between.computed import Computed, Precision
from gptq_diff.diagnose.between.head import Hidden, logits
from gptq_diff.diagnose.between.named import Named, explains, number
from gptq_diff.diagnose.between.norms import Added, rms_norm
from gptq_diff.diagnose.between.why_norm import eps_told, other_eps

FEW = 0.02
"""Share of the vocabulary up to which wrong logits are told one by one."""
FAR = 13.0
"""Standard deviations that no logit errs by rounding: FACTOR times what the largest of a vocabulary is expected to."""
ROWS = 4
"""Rows of the head's weight, over its columns, from which the vector behind the logits is solved for."""


@dataclass(frozen=True)
class Head:
    """The last row on its way to the logits. added: [1, H] each. weight_H: the last norm's. weight_VH: as stored."""

    added: Added
    weight_H: torch.Tensor
    eps: float
    weight_VH: torch.Tensor
    precision: Precision
    computed: Computed
    captured_V: torch.Tensor


def why_head(head: Head) -> Named:
    """A few wrong logits are the head's; a vector that gives all of them is the norm's or the stream's."""
    own = head.computed
    share_V = ((head.captured_V - own.exact_TN[0]).abs() / own.variance_TN[0].sqrt()).nan_to_num(nan=float("inf"))
    wrong = torch.nonzero(share_V > FAR).flatten()
    others = torch.where(share_V > FAR, 0.0, share_V)
    if 0 < len(wrong) <= FEW * len(share_V) and float(others.square().mean()) <= FACTOR**2:
        c = int(share_V.argmax())
        ratio = float(head.captured_V[c]) / float(own.exact_TN[0, c])
        return Named(
            "lm_head",
            f"{len(wrong)} of {len(share_V):,} logits are wrong and the others right: token {c}'s is "
            f"{number(float(head.captured_V[c]))}, {number(ratio)} times the exact one",
            "tokens",
        )
    return _wrong_sum(head) or _factor(head) or _wrong_vector(head) or Named("lm_head")


def _wrong_sum(head: Head) -> Named | None:
    a = head.added
    variants = {
        f"the residual before {a.layer} was dropped": a.output,
        f"the output of {a.layer} was not added to the residual": a.before,
        f"the output of {a.layer} was added twice": a.total + a.output,
    }
    normed = [Hidden(rms_norm(s, head.weight_H, head.eps, head.precision), head.precision) for s in variants.values()]
    for why, computed in zip(variants, logits(normed, head.weight_VH)):
        if explains(computed, head.captured_V[None], head.precision):
            return Named("residual", why, "sum")
    return None


def _factor(head: Head) -> Named | None:
    """All logits right but for one factor: another eps, or another mean."""
    y, captured = head.computed.exact_TN[0].double(), head.captured_V.double()
    factor = (y @ captured) / (y @ y).clamp_min(1e-300)
    scaled = replace(head.computed, exact_TN=head.computed.exact_TN * factor.to(head.computed.exact_TN.dtype))
    if not explains(scaled, head.captured_V[None], head.precision):
        return None
    eps = other_eps(head.added.total, head.eps, factor[None], head.computed.ok_T)
    if eps > 0:
        return Named("norm", eps_told(eps, head.eps), "eps")
    return Named("norm", f"all logits are {number(float(factor))} times what the last norm gives", "factor")


def _wrong_vector(head: Head) -> Named | None:
    """Solve for the vector from some logits, and see whether it gives the others as well."""
    v, h = head.weight_VH.shape
    some = min(v, ROWS * h)
    rows = torch.arange(some) * (v - 1) // (some - 1)
    if len(rows) <= h:
        return None
    w = head.weight_VH[rows].to(head.precision.dtype).double()
    wanted = head.captured_V[rows].double()[:, None]
    solved = torch.linalg.lstsq(w, wanted, driver="gelsd").solution.T  # the weight may lack a few ranks
    own = rms_norm(head.added.total, head.weight_H, head.eps, head.precision)
    hidden = Computed(solved, own.variance_TN.double(), own.ok_T, own.mixed_T, 0.0)
    (computed,) = logits([Hidden(hidden, head.precision)], head.weight_VH)
    if not explains(computed, head.captured_V[None], head.precision):
        return None
    ratio_H = solved[0] / own.exact_TN[0].double()
    factor = float(ratio_H.median())
    off = torch.nonzero((ratio_H - factor).abs() > 0.05 * abs(factor)).flatten()
    told = f", {len(off)} of its {h} channels, first channel {int(off[0])}" if 0 < len(off) < h // 2 else ""
    return Named("norm", f"all logits are those of another vector than the last norm gives{told}", "weight")
