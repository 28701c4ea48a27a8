"""What happens to a linear's product afterwards, under tensor parallelism: the sum over the ranks, judged by itself."""

from __future__ import annotations

import torch

from gptq_diff.capture.tap import ALL_REDUCE, BIAS
from gptq_diff.compare.bias_step import judge_bias
from gptq_diff.compare.figures import FACTOR, LARGEST_HALF
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.numerics.partial_sums import half_variance
from gptq_diff.records import Judgement

_SMALLEST = 1e-300


def judge_step(layer: str, call: CapturedCall, bias_N: torch.Tensor | None = None) -> Judgement:
    """A step that is no kernel's: an all-reduce against the sum of its summands, two copies that must be equal, a bias.

    bias: the checkpoint's.
    x of an all-reduce: [ranks * M, N], the ranks' summands below each other; y: [M, N], as every rank got it.
    """
    if call.path == BIAS:
        return judge_bias(layer, call, bias_N)
    rows = call.y_MN.shape[0]
    summands_RMN = call.x_MK.reshape(-1, rows, call.y_MN.shape[1]).double()
    finite_M = torch.isfinite(summands_RMN).all(dim=2).all(dim=0)
    exact_MN = summands_RMN.sum(dim=0)
    y_MN = call.y_MN.double()
    lost_MN = ~torch.isfinite(y_MN) & finite_M[:, None]
    too_large_MN = lost_MN & (exact_MN.abs() >= LARGEST_HALF)
    good_MN = torch.isfinite(y_MN) & finite_M[:, None]
    error_MN = torch.where(good_MN, y_MN - exact_MN, 0.0)
    floor2_MN = torch.where(good_MN, _rounding2(summands_RMN, exact_MN), 0.0)
    error2_M, floor2_M = error_MN.square().sum(dim=1), floor2_MN.sum(dim=1)
    share_M = (error2_M / floor2_M.clamp_min(_SMALLEST)).sqrt() / FACTOR
    differs = call.path != ALL_REDUCE and not torch.equal(call.x_MK.view(torch.int16), call.y_MN.view(torch.int16))
    kind, cause = "ok", None
    if call.path == ALL_REDUCE and bool(lost_MN.any()):
        kind, cause = "overflow", "all-reduce" if bool((lost_MN & ~too_large_MN).any()) else "result-overflow"
    elif not bool(finite_M.any()) and not differs:
        kind = "inherited"
    elif differs or float(share_M.max()) > 1.0:
        kind, cause = "diverged", "all-reduce"
    where = torch.nonzero(lost_MN)
    size = float(torch.where(good_MN, exact_MN, 0.0).square().sum().sqrt())
    judged = bool(finite_M.any())
    return Judgement(
        layer=layer, index=call.index, step=call.step, rank=0, path=call.path, rows=rows, elements=y_MN.numel(),
        kind=kind, cause=cause, nonfinite=int(lost_MN.sum()),
        first_index=(int(where[0, 0]), int(where[0, 1])) if len(where) else None,
        inherited_rows=int((~finite_M).sum()),
        local_l2_rel=_ratio(float(error2_M.sum().sqrt()), size) if judged else None,
        noise_floor=_ratio(float(floor2_M.sum().sqrt()), size) if judged else None,
        excess=float(share_M.max()) if judged else None, worst_row=int(share_M.argmax()) if judged else None,
        inherited_l2_rel=None, input_absmax=_largest(summands_RMN), exact_absmax=_largest(exact_MN),
        output_absmax=_largest(y_MN), max_abs=_largest(error_MN), part=call.part,
    )  # fmt: skip


def _rounding2(summands_RMN: torch.Tensor, exact_MN: torch.Tensor) -> torch.Tensor:
    """float64 [M, N]: squared rounding expected of adding the ranks' float16 summands one after another.

    Every partial sum may be rounded, in an order that the library chooses: each is taken as large as the largest
    summand or the result, whichever is more. No addition, no rounding.
    """
    additions = summands_RMN.shape[0] - 1
    largest_MN = torch.maximum(summands_RMN.abs().amax(dim=0), exact_MN.abs())
    return half_variance(largest_MN) * additions


def _ratio(error: float, size: float) -> float | None:
    if size == 0.0:
        return 0.0 if error == 0.0 else None
    return error / size


def _largest(values: torch.Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0
