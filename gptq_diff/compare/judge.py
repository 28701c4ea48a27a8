"""Judging one layer: every captured call held against the exact answer on its own input.

The rule, one for all backends and models: a call **diverges** when its error passes FACTOR times the noise floor
that its kernel's rounding explains, over the whole tensor, over any one row, or over any one column of eight rows or
more. Non-finite values are counted first and apart, and never enter a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.compare.exact_answer import stack_inputs, stacked
from gptq_diff.compare.figures import FACTOR, Floats, RowFigures, row_figures
from gptq_diff.compare.rows import Figures
from gptq_diff.compare.weight import Weight
from gptq_diff.numerics.partial_sums import row_norm2
from gptq_diff.records import Judgement

__all__ = ["FACTOR", "CapturedCall", "Weight", "judge_layer"]

_SMALLEST = 1e-300
"""Keeps 0 / 0 at 0: no error where none is expected."""


class CapturedCall(NamedTuple):
    """One call of this layer as captured; tensors as stored.

    reference_x: the reference's input, if it is still to be compared; inherited_l2_rel: the comparison, if it was made.
    part, first: as in capture.tap.Call; of a rank's share, x and reference_x hold the columns from `first` on.
    """

    step: int
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not asked for
    path: str
    x_MK: torch.Tensor
    y_MN: torch.Tensor
    reference_x: torch.Tensor | None
    inherited_l2_rel: float | None = None
    part: str = ""
    first: int = 0


@dataclass(frozen=True)
class _CallFigures:
    """One entry a call."""

    excess: list[float]  # largest of the tensor's, any row's and any column's; meaningless where no row is finite
    worst_row: list[int]
    error: list[float]
    exact: list[float]
    floor: list[float]
    judged_rows: list[int]
    overflow: list[int]
    too_large: list[int]
    spoiled: list[int]
    x_absmax: list[float]
    exact_absmax: list[float]
    y_absmax: list[float]
    max_abs: list[float]
    inherited: list[float | None]


def judge_layer(weight: Weight, calls: Sequence[CapturedCall], rows_of: list[Figures] | None = None) -> list[Judgement]:
    """One judgement a call, in the order given; every call has at least one row.

    rows_of: takes the figures of every call's single rows, in the same order.
    """
    if not calls:
        return []
    calls = [placed(call, weight.spec.in_features) for call in calls]
    starts = np.cumsum([0] + [c.x_MK.shape[0] for c in calls])
    spans = [(c.path, slice(int(a), int(b))) for c, a, b in zip(calls, starts, starts[1:])]
    rows = stack_inputs([c.x_MK.to(weight.device) for c in calls])
    y_MN = stacked([c.y_MN.to(weight.device) for c in calls])
    figures = row_figures(weight, rows, y_MN, spans)
    if rows_of is not None:
        rows_of.extend(np.split(_single_rows(figures), starts[1:-1]))
    by_call = _by_call(figures, starts, inherited(calls, rows.finite_M, starts))
    return [_judgement(weight.spec.name, call, by_call, i) for i, call in enumerate(calls)]


def _single_rows(f: RowFigures) -> Figures:
    """Of all rows, as compare.rows keeps them; the error is NaN where the exact answer is zero and it is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(f.error2 == 0, 0.0, np.sqrt(f.error2 / f.exact2))
    error[np.isinf(error)] = np.nan
    found = np.stack([f.x_absmax, f.y_absmax, error, f.overflow + f.too_large + f.spoiled], axis=1).astype(np.float32)
    found[~f.finite] = np.nan
    return found


def placed(call: CapturedCall, in_features: int) -> CapturedCall:
    """A rank's share as a call of the whole linear, zero where the other ranks' inputs are: W x of it is the same."""
    if call.x_MK.shape[1] == in_features:
        return call

    def whole(x_MK: torch.Tensor) -> torch.Tensor:
        after = in_features - call.first - x_MK.shape[1]
        return torch.nn.functional.pad(x_MK, (call.first, after))

    reference_x = None if call.reference_x is None else whole(call.reference_x)
    return call._replace(x_MK=whole(call.x_MK), reference_x=reference_x)


def _by_call(f: RowFigures, starts: npt.NDArray[np.int64], inherited_l2_rel: list[float | None]) -> _CallFigures:
    first = starts[:-1]

    def total(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.add.reduceat(values, first)

    def largest(values: Floats) -> list[float]:
        return [float(v) for v in np.maximum.reduceat(values, first)]

    error2, floor2 = total(f.error2), total(f.floor2)
    row_share = np.where(f.finite, np.sqrt(f.error2 / np.maximum(f.floor2, _SMALLEST)) / FACTOR, -1.0)
    call_share = np.sqrt(error2 / np.maximum(floor2, _SMALLEST)) / FACTOR
    return _CallFigures(
        excess=np.maximum(np.maximum(np.maximum.reduceat(row_share, first), call_share), f.column_shares).tolist(),
        worst_row=[int(row_share[a:b].argmax()) for a, b in zip(starts.tolist(), starts[1:].tolist())],
        error=np.sqrt(error2).tolist(), exact=np.sqrt(total(f.exact2)).tolist(), floor=np.sqrt(floor2).tolist(),
        judged_rows=total(f.finite.astype(np.int64)).tolist(), overflow=total(f.overflow).tolist(),
        too_large=total(f.too_large).tolist(), spoiled=total(f.spoiled).tolist(),
        x_absmax=largest(f.x_absmax), exact_absmax=largest(f.exact_absmax), y_absmax=largest(f.y_absmax),
        max_abs=largest(f.max_abs), inherited=inherited_l2_rel,
    )  # fmt: skip


def _judgement(layer: str, call: CapturedCall, f: _CallFigures, i: int) -> Judgement:
    rows, judged = call.x_MK.shape[0], f.judged_rows[i] > 0
    nonfinite = f.overflow[i] + f.too_large[i] + f.spoiled[i]
    kind, cause = "ok", None
    if f.overflow[i] or f.too_large[i]:
        kind, cause = "overflow", None if f.overflow[i] else "result-overflow"
    elif f.spoiled[i]:
        kind, cause = "nan", "nan-weights"
    elif not judged:
        kind = "inherited"
    elif f.excess[i] > 1.0:
        kind = "diverged"
    return Judgement(
        layer=layer, index=call.index, step=call.step, rank=int(call.part or 0), path=call.path, part=call.part,
        rows=rows, elements=rows * call.y_MN.shape[1], kind=kind, cause=cause, nonfinite=nonfinite,
        first_index=_first_index(call) if nonfinite else None,
        inherited_rows=rows - f.judged_rows[i],
        local_l2_rel=_ratio(f.error[i], f.exact[i]) if judged else None,
        noise_floor=_ratio(f.floor[i], f.exact[i]) if judged else None,
        excess=f.excess[i] if judged else None,
        worst_row=f.worst_row[i] if judged else None,
        inherited_l2_rel=f.inherited[i], input_absmax=f.x_absmax[i], exact_absmax=f.exact_absmax[i],
        output_absmax=f.y_absmax[i], max_abs=f.max_abs[i],
        error_share=min(1.0, (f.max_abs[i] / f.error[i]) ** 2) if judged and f.error[i] > 0 else None,
    )  # fmt: skip


def _ratio(error: float, norm: float) -> float | None:
    """Error over norm; None where the exact answer is all zeros and the error is not."""
    if norm == 0.0:
        return 0.0 if error == 0.0 else None
    return error / norm


def _first_index(call: CapturedCall) -> tuple[int, int] | None:
    """[row, column] of the first non-finite output on a row whose input is finite."""
    finite_M = torch.isfinite(call.x_MK).all(dim=1)
    where = torch.nonzero(~torch.isfinite(call.y_MN) & finite_M[:, None])
    return (int(where[0, 0]), int(where[0, 1])) if len(where) else None


def inherited(
    calls: Sequence[CapturedCall], finite_M: torch.Tensor, starts: npt.NDArray[np.int64]
) -> list[float | None]:
    """l2_rel between each call's input and the reference's; None when there is nothing to compare with.

    A call with a non-finite input, or reference input, has none either: the difference has no size. Inputs that are
    still to be compared are those of decode steps: all together, since there the calls cost more than the sums.
    """
    found = [call.inherited_l2_rel for call in calls]
    open_ = [i for i, c in enumerate(calls) if c.reference_x is not None and c.reference_x.shape == c.x_MK.shape]
    if open_:
        x_MK = torch.cat([calls[i].x_MK.to(torch.float32) for i in open_])
        reference_MK = torch.cat([calls[i].reference_x.to(torch.float32) for i in open_])  # type: ignore[union-attr]
        first = np.cumsum([0] + [calls[i].x_MK.shape[0] for i in open_])[:-1]
        gap2, size2 = (np.add.reduceat(row_norm2(t).cpu().numpy(), first) for t in (x_MK - reference_MK, reference_MK))
        for i, g2, s2 in zip(open_, gap2.tolist(), size2.tolist()):
            found[i] = finite_ratio(g2**0.5, s2**0.5)
    if bool(finite_M.all()):
        return found
    whole = np.logical_and.reduceat(finite_M.cpu().numpy(), starts[:-1])
    return [value if ok else None for value, ok in zip(found, whole.tolist())]


def finite_ratio(gap: float, size: float) -> float | None:
    """Gap over size; None where either is NaN or infinite."""
    ratio = gap / max(size, 1e-30)
    return ratio if ratio < float("inf") else None
