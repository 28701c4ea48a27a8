"""What is wrong where a norm's output is not that of the residual stream: the norm, or the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.between.computed import Computed, Precision
from gptq_diff.diagnose.between.named import Named, explains, number
from gptq_diff.diagnose.between.norms import Added, rms_norm

MOST_NAMED = 3
"""Channels named in the evidence."""
ALIKE = 0.01
"""Relative spread below which numbers count as one."""


@dataclass(frozen=True)
class Site:
    """One norm with all its rows.

    added: the addition before it. captured_TH: what the linear behind it took. next_agrees: whether the norm after this
    one is as the stream has it, per row; None where there is none.
    """

    added: Added
    weight_H: torch.Tensor
    eps: float
    captured_TH: torch.Tensor
    precision: Precision
    next_agrees: Callable[[torch.Tensor], torch.Tensor | None]

    def normed(self, stream_TH: torch.Tensor) -> Computed:
        """The norm of another stream."""
        return rms_norm(stream_TH, self.weight_H, self.eps, self.precision)


def why_norm(site: Site) -> Named:
    """The residual stream's known faults first, then the norm's, then what the norm after it says."""
    return _wrong_sum(site) or _row_factor(site) or _other_weight(site) or _by_what_follows(site)


def _wrong_sum(site: Site) -> Named | None:
    a = site.added
    if not a.layer:
        return None
    variants = {
        f"the residual before {a.layer} was dropped": a.output,
        f"the output of {a.layer} was not added to the residual": a.before,
        f"the output of {a.layer} was added twice": a.total + a.output,
        f"the residual before {a.layer} was added twice": a.total + a.before,
        f"the output of {a.layer} was subtracted": a.before - a.output,
    }
    for why, stream in variants.items():
        if explains(site.normed(stream), site.captured_TH, site.precision):
            return Named("residual", why, "sum", stream=stream)
    return None


def _row_factor(site: Site) -> Named | None:
    """Rows that are right but for a factor each: another eps, or another mean."""
    own = site.normed(site.added.total)
    y_TH, n_TH = own.exact_TN.double(), site.captured_TH.double()
    factor_T = (n_TH * y_TH).sum(dim=1) / y_TH.square().sum(dim=1).clamp_min(1e-300)
    scaled = replace(own, exact_TN=(own.exact_TN * factor_T[:, None].to(own.exact_TN.dtype)))
    if not explains(scaled, site.captured_TH, site.precision):
        return None
    eps = other_eps(site.added.total, site.eps, factor_T, own.ok_T)
    there = rms_norm(site.added.total, site.weight_H, eps, site.precision) if eps > 0 else own
    if explains(there, site.captured_TH, site.precision):
        return Named("norm", eps_told(eps, site.eps), "eps")
    low, high = float(factor_T[own.ok_T].amin()), float(factor_T[own.ok_T].amax())
    if high - low < ALIKE * abs(high):
        return Named("norm", f"every row is {number(high)} times what the norm gives", "factor")
    return Named("norm", f"every row is right but for a factor, from {number(low)} to {number(high)}", "factor")


def other_eps(stream_TH: torch.Tensor, eps: float, factor_T: torch.Tensor, ok_T: torch.Tensor) -> float:
    """The eps that multiplies the smallest row, where it shows most, by that factor; 0 or less where none does."""
    mean2_T = torch.where(ok_T, stream_TH.double().square().mean(dim=1), float("inf"))
    row = int(mean2_T.argmin())
    return float((mean2_T[row] + eps) / factor_T[row].square() - mean2_T[row])


def eps_told(eps: float, own: float) -> str:
    """An eps that is not the model's, in words."""
    return f"an eps of {number(eps)} gives the captured values, the model has {number(own)}"


def _other_weight(site: Site) -> Named | None:
    """Columns that are right but for a factor each: another weight."""
    ones = torch.ones_like(site.weight_H)
    x = rms_norm(site.added.total, ones, site.eps, site.precision)
    if int(x.ok_T.sum()) < 2:
        return None
    x_TH, n_TH = (torch.where(x.ok_T[:, None], t.double(), 0.0) for t in (x.exact_TN, site.captured_TH))
    weight_H = ((n_TH * x_TH).sum(dim=0) / x_TH.square().sum(dim=0).clamp_min(1e-300)).to(site.weight_H.dtype)
    if not explains(rms_norm(site.added.total, weight_H, site.eps, site.precision), site.captured_TH, site.precision):
        return None
    ratio_H = weight_H.double() / torch.where(site.weight_H == 0, 1.0, site.weight_H).double()
    if float(ratio_H.std()) < ALIKE * float(ratio_H.mean().abs()):
        return Named("norm", f"the whole weight is {number(float(ratio_H.mean()))} times the checkpoint's", "weight")
    own = site.normed(site.added.total)
    off_H = ((n_TH - torch.where(x.ok_T[:, None], own.exact_TN, 0.0).double()).square() / own.variance_TN).mean(dim=0)
    wrong = torch.argsort(off_H, descending=True)[: max(int((off_H > FACTOR**2).sum()), 1)]
    told = ", ".join(
        f"{number(float(weight_H[c]))} at channel {int(c)} (the checkpoint has {number(float(site.weight_H[c]))})"
        for c in wrong[:MOST_NAMED]
    )
    return Named("norm", f"{len(wrong)} of its {len(off_H)} weights differ from the checkpoint's: {told}", "weight")


def _by_what_follows(site: Site) -> Named:
    """The stream is wrong if the norms after it are wrong too; then these rows cannot be followed any further."""
    own = site.normed(site.added.total)
    error2 = (site.captured_TH.to(own.exact_TN.dtype) - own.exact_TN).square() / own.variance_TN.clamp_min(1e-37)
    wrong_T = ~(error2.mean(dim=1) <= FACTOR**2)
    agrees_T = site.next_agrees(site.added.total)
    if agrees_T is None or bool(agrees_T[wrong_T].any()) or not bool(wrong_T.any()):
        return Named("norm")
    name = "residual" if site.added.layer else "embedding"
    return Named(name, "the norm after the next linear differs in the same rows", "rows", lost_T=wrong_T)
