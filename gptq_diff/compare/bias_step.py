"""A linear's bias, judged by itself: what an engine makes of one row of the product, against product plus bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gptq_diff.compare.figures import FACTOR, LARGEST_HALF
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.numerics.floors import SINGLE_RMS
from gptq_diff.numerics.partial_sums import half_variance
from gptq_diff.records import Judgement

_SMALLEST = 1e-300
WIDEST = 0.25
"""Of the square of the widest range that a column's runs have: the variance granted to every column."""


@dataclass(frozen=True)
class BiasStep:
    """float64 [N]: the product, what came out, the bias as the engine's dtype has it, and each column's rounding.

    known_N: bool, where product and bias are finite. exact_N: product plus bias. The rounding is the sum's, the
    product's (some kernels add the bias before they round) and, where the kernel was run anew, what its runs differ by
    among themselves.
    """

    product_N: torch.Tensor
    y_N: torch.Tensor
    bias_N: torch.Tensor
    variance_N: torch.Tensor
    known_N: torch.Tensor
    exact_N: torch.Tensor

    def share(self, exact_N: torch.Tensor) -> float:
        """Share of the threshold that the outcome reaches if that were right: over the row, and of the worst column."""
        good_N = self.known_N & torch.isfinite(self.y_N)
        share2_N = torch.where(good_N, (self.y_N - exact_N).square() / self.variance_N.clamp_min(_SMALLEST), 0.0)
        count = max(int(good_N.sum()), 1)
        largest = float(share2_N.amax()) / (2.0 * math.log(2.0 * count))
        return math.sqrt(max(float(share2_N.sum()) / count, largest)) / FACTOR


def bias_step(call: CapturedCall, bias_N: torch.Tensor | None) -> BiasStep:
    """The captured step. bias: the checkpoint's, None where it has none."""
    product_RN, y_N = call.x_MK.double(), call.y_MN[0].double()
    bias = torch.zeros_like(y_N) if bias_N is None else bias_N.to(call.y_MN.dtype).double()
    product_N = product_RN[0]
    known_N = torch.isfinite(product_RN).all(dim=0) & torch.isfinite(bias)
    product_N, bias = torch.where(known_N, product_N, 0.0), torch.where(known_N, bias, 0.0)
    if call.y_MN.dtype == torch.float32:
        variance_N = SINGLE_RMS**2 * (product_N.square() + (product_N + bias).square())
    else:
        variance_N = half_variance(product_N) + half_variance(product_N + bias)
    if len(product_RN) > 1 and bool(known_N.any()):
        range_N = product_RN.amax(dim=0) - product_RN.amin(dim=0)
        variance_N = variance_N + WIDEST * range_N[known_N].amax().square()
    return BiasStep(product_N, y_N, bias, variance_N, known_N, product_N + bias)


def judge_bias(layer: str, call: CapturedCall, bias_N: torch.Tensor | None) -> Judgement:
    """The rule of linears: values lost first, then the share of the threshold."""
    step = bias_step(call, bias_N)
    exact_N, y_N = step.exact_N, step.y_N
    lost_N = ~torch.isfinite(y_N) & step.known_N
    beyond_N = lost_N & (exact_N.abs() >= LARGEST_HALF)
    judged = bool(step.known_N.any())
    excess = step.share(exact_N) if judged else None
    kind, cause = "ok", None
    if bool(lost_N.any()):
        kind, cause = "overflow", "bias" if bool((lost_N & ~beyond_N).any()) else "result-overflow"
    elif excess is None:
        kind = "inherited"
    elif excess > 1.0:
        kind, cause = "diverged", "bias"
    good_N = step.known_N & ~lost_N
    error_N = torch.where(good_N, y_N - exact_N, 0.0)
    size = float(torch.where(good_N, exact_N, 0.0).norm())
    where = torch.nonzero(lost_N).flatten().tolist()
    return Judgement(
        layer=layer, index=call.index, step=call.step, rank=0, path=call.path, rows=1, elements=len(y_N), kind=kind,
        cause=cause, nonfinite=len(where), first_index=(0, where[0]) if where else None,
        inherited_rows=0 if judged else 1, local_l2_rel=_ratio(float(error_N.norm()), size) if judged else None,
        noise_floor=_ratio(float(torch.where(good_N, step.variance_N, 0.0).sum().sqrt()), size) if judged else None,
        excess=excess, worst_row=0 if judged else None, inherited_l2_rel=None,
        input_absmax=float(step.product_N.abs().amax()), exact_absmax=float(exact_N.abs().amax()),
        output_absmax=float(torch.where(torch.isfinite(y_N), y_N, 0.0).abs().amax()),
        max_abs=float(error_N.abs().amax()), part=call.part,
    )  # fmt: skip


def _ratio(error: float, size: float) -> float | None:
    if size == 0.0:
        return 0.0 if error == 0.0 else None
    return error / size
