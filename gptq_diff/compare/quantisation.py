"""What quantisation itself changes: the unquantised linear's output against the quantised one's, on the same input.

Nothing is judged here. Where a backend errs by more than its rounding, the kernel is to blame; how far the quantised
model is from the one it was made from is another question, and these figures answer it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from gptq_diff.compare.exact_answer import exact_product, stack_inputs
from gptq_diff.compare.judge import CapturedCall, Weight, inherited
from gptq_diff.records import ORIGINAL, Judgement, LayerError, QuantizationError


def quantisation_errors(weight: Weight, calls: Sequence[CapturedCall]) -> list[Judgement]:
    """One entry a call of the unquantised linear, kind ORIGINAL; weight: the quantised one, exact.

    Elements that are not finite on either side are counted (of y) and left out of the norms.
    """
    if not calls:
        return []
    rows = stack_inputs([call.x_MK.to(weight.device) for call in calls])
    quantised_MN = exact_product(rows, weight.w_KN).cpu()
    starts = np.cumsum([0] + [call.x_MK.shape[0] for call in calls])
    finite_M = rows.finite_M.cpu()
    gaps = inherited(calls, finite_M, starts)
    found = []
    for call, gap, first, last in zip(calls, gaps, starts.tolist(), starts[1:].tolist()):
        part = slice(first, last)
        found.append(_figures(weight.spec.name, call, quantised_MN[part], finite_M[part], gap))
    return found


def _figures(
    layer: str, call: CapturedCall, quantised_MN: torch.Tensor, finite_M: torch.Tensor, gap: float | None
) -> Judgement:
    y_MN = call.y_MN.double()
    lost_MN = ~torch.isfinite(y_MN) & finite_M[:, None]
    good_MN = torch.isfinite(y_MN) & torch.isfinite(quantised_MN) & finite_M[:, None]
    exact_MN = torch.where(good_MN, quantised_MN.double(), 0.0)
    error_MN = torch.where(good_MN, y_MN, 0.0) - exact_MN
    size, error = float(exact_MN.norm()), float(error_MN.norm())
    where = torch.nonzero(lost_MN)
    x_MK = torch.where(torch.isfinite(call.x_MK), call.x_MK.double(), 0.0)
    return Judgement(
        layer=layer, index=call.index, step=call.step, rank=0, path=call.path, rows=len(y_MN), elements=y_MN.numel(),
        kind=ORIGINAL, cause=None, nonfinite=int(lost_MN.sum()),
        first_index=(int(where[0, 0]), int(where[0, 1])) if len(where) else None,
        inherited_rows=int((~finite_M).sum()),
        local_l2_rel=error / size if size > 0 else (0.0 if error == 0 else None),
        noise_floor=None, excess=None, worst_row=None, inherited_l2_rel=gap, input_absmax=_largest(x_MK),
        exact_absmax=_largest(exact_MN), output_absmax=_largest(torch.where(good_MN, y_MN, 0.0)),
        max_abs=_largest(error_MN),
    )  # fmt: skip


def _largest(t: torch.Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def summary(judgements: Sequence[Judgement]) -> QuantizationError:
    """The prefill's figures of every linear, with the middle and the worst."""
    layers = {j.layer: LayerError(j.local_l2_rel, j.inherited_l2_rel) for j in judgements if j.step == 0}
    sizes = {name: layer.local_l2_rel for name, layer in layers.items() if layer.local_l2_rel is not None}
    worst = max(sizes, key=sizes.__getitem__, default=None)
    return QuantizationError(
        median_l2_rel=statistics.median(sizes.values()) if sizes else None,
        worst_l2_rel=sizes[worst] if worst is not None else None, worst_layer=worst, layers=layers,
    )  # fmt: skip
