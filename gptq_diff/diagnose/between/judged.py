"""One interval's shares as a judgement, beside those of the linears."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.diagnose.between.computed import Lost, Shares
from gptq_diff.records import Judgement


@dataclass(frozen=True)
class Place:
    """Where an interval ends.

    name: "norm", "attention", ... layer: the linear whose input it makes ("lm_head" for the logits). index: that
    linear's, in order of execution.
    """

    name: str
    layer: str
    index: int


def judgement(place: Place, step: int, rows: int, columns: int, input_absmax: float, s: Shares) -> Judgement:
    """The rule of linears: non-finite first, then the share of the threshold.

    A value that is lost although what it is computed from is finite is `nan` with the cause `nan-input`, unless the
    exact answer itself is beyond the dtype: then it is an `overflow` of the result.
    """
    kind, cause = "ok", None
    if s.lost.within:
        kind, cause = "nan", "nan-input"
    elif s.lost.beyond:
        kind, cause = "overflow", "result-overflow"
    elif s.excess is None:
        kind = "inherited"
    elif s.excess > 1.0:
        kind, cause = "diverged", "outside-linears"
    judged = s.excess is not None
    return Judgement(
        layer=place.layer, index=place.index, step=step, rank=0, path=place.name, rows=rows, elements=rows * columns,
        kind=kind, cause=cause, nonfinite=s.lost.within + s.lost.beyond, first_index=s.lost.first_index,
        inherited_rows=s.left_out_rows, local_l2_rel=_ratio(s.error, s.exact) if judged else None,
        noise_floor=_ratio(s.floor, s.exact) if judged else None, excess=s.excess, worst_row=s.worst_row,
        inherited_l2_rel=None, input_absmax=input_absmax, exact_absmax=s.exact_absmax, output_absmax=s.output_absmax,
        max_abs=s.max_abs, part=place.name,
    )  # fmt: skip


def overflown(place: Place, step: int, rows: int, columns: int, lost: Lost, largest: float) -> Judgement:
    """A residual sum of finite summands that is beyond the dtype."""
    shares = Shares(None, None, 0.0, 0.0, 0.0, 0.0, largest, 0.0, lost, 0)
    return judgement(place, step, rows, columns, largest, shares)


def _ratio(error: float, size: float) -> float | None:
    if size == 0.0:
        return 0.0 if error == 0.0 else None
    return error / size
