"""What an interval must give, with the rounding that it may do, and how what was captured compares with that.

Every element has a variance of its own, so each error is told in multiples of what its rounding explains (a share of
the standard deviation). Judged are the root mean square of these over the whole tensor, over every row, and over every
column of eight rows or more, which are held against FACTOR; and the largest of all, which is held against FACTOR times
sqrt(2 ln 2n), the largest that n normal errors are expected to have (M. R. Leadbetter, G. Lindgren, H. Rootzen,
Extremes and Related Properties of Random Sequences and Processes, 1983, section 1.5): one wrong element among many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR, LARGEST_HALF
from gptq_diff.numerics.floors import HALF_RMS, SINGLE_RMS, SUBNORMAL_RMS

FEWEST_ROWS = 8
"""Rows from which a column's mean is judged."""


@dataclass(frozen=True)
class Precision:
    """The dtype that an engine's skeleton computes in.

    wide: what its exact answers are computed in. rms: relative error of one rounding, root mean square.
    least: absolute, of the smallest values. largest: values from here on become infinite.
    """

    dtype: torch.dtype
    wide: torch.dtype
    rms: float
    least: float
    largest: float


HALF = Precision(torch.float16, torch.float32, HALF_RMS, SUBNORMAL_RMS, LARGEST_HALF)
SINGLE = Precision(torch.float32, torch.float64, SINGLE_RMS, 2.0**-149, 3.4028235e38)


def precision_of(dtype: torch.dtype) -> Precision | None:
    """None for what no engine here runs in."""
    return {torch.float16: HALF, torch.float32: SINGLE}.get(dtype)


@dataclass(frozen=True)
class Computed:
    """An interval's exact answer for all rows of a capture, the steps' rows below each other.

    exact_TN, variance_TN: wide, the second the expected square of each element's error, nowhere 0.
    ok_T: bool, rows whose own inputs were finite. mixed_T: bool, rows that a non-finite row of the same step may reach
    on the way (a masked score of 0 times NaN): judged where they are finite.
    input_absmax: the largest finite input.
    """

    exact_TN: torch.Tensor
    variance_TN: torch.Tensor
    ok_T: torch.Tensor
    mixed_T: torch.Tensor
    input_absmax: float


@dataclass(frozen=True)
class Lost:
    """Non-finite values on judged rows: those whose exact answer is within the dtype's range, and those beyond it.

    first_index: [row, column] of the first of all.
    """

    within: int
    beyond: int
    first_index: tuple[int, int] | None


NOTHING = Lost(0, 0, None)


@dataclass(frozen=True)
class Shares:
    """Captured against computed, over some rows.

    excess: the largest share of the detection threshold, above 1 is diverged; None where no row can be judged.
    error, exact, floor: l2 norms of what is off, of the exact answer, of the rounding to expect.
    """

    excess: float | None
    worst_row: int | None
    error: float
    exact: float
    floor: float
    max_abs: float
    exact_absmax: float
    output_absmax: float
    lost: Lost
    left_out_rows: int


def finite_rows(values_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(bool [M]: rows without NaN and infinity, [M]: the largest magnitude of each); wide values, one pass."""
    largest_M = values_MN.abs().amax(dim=1)
    return torch.isfinite(largest_M), largest_M


def shares(computed: Computed, captured_TN: torch.Tensor, spans: Sequence[slice], precision: Precision) -> list[Shares]:
    """Judge the captured rows, one entry a span of them."""
    y_TN = captured_TN.to(computed.exact_TN.dtype)
    error_TN = y_TN - computed.exact_TN
    finite_T, size_T = finite_rows(error_TN)
    if bool(finite_T.all()) and bool(computed.ok_T.all()):
        return _by_span(error_TN, size_T, computed, finite_rows(y_TN)[1], [NOTHING] * len(spans), spans, computed.ok_T)
    finite_TN = torch.isfinite(y_TN)
    ok_T = computed.ok_T & (finite_TN.all(dim=1) | ~computed.mixed_T)
    gone_TN = ~finite_TN & ok_T[:, None]
    beyond_TN = gone_TN & (computed.exact_TN.abs() >= precision.largest)
    good_TN = finite_TN & ok_T[:, None]
    error_TN, exact_TN = torch.where(good_TN, error_TN, 0.0), torch.where(good_TN, computed.exact_TN, 0.0)
    lost = [_lost(gone_TN[span], beyond_TN[span]) for span in spans]
    known = replace(computed, exact_TN=exact_TN)
    largest_T = finite_rows(torch.where(finite_TN, y_TN, 0.0))[1]
    return _by_span(error_TN, finite_rows(error_TN)[1], known, largest_T, lost, spans, ok_T)


def _lost(gone_MN: torch.Tensor, beyond_MN: torch.Tensor) -> Lost:
    where = torch.nonzero(gone_MN)[:1].tolist()
    beyond = int(beyond_MN.sum())
    return Lost(int(gone_MN.sum()) - beyond, beyond, (where[0][0], where[0][1]) if where else None)


def _by_span(
    error_TN: torch.Tensor, size_T: torch.Tensor, computed: Computed, largest_T: torch.Tensor, lost: Sequence[Lost],
    spans: Sequence[slice], ok_T: torch.Tensor,
) -> list[Shares]:  # fmt: skip
    """Errors that are no longer NaN: 0 where nothing is judged."""
    exact_TN, columns = computed.exact_TN, error_TN.shape[1]
    share2_TN = error_TN.square().div_(computed.variance_TN)
    norm = torch.linalg.vector_norm
    by_row = torch.stack([
        norm(error_TN, dim=1).double().square(), norm(exact_TN, dim=1).double().square(),
        computed.variance_TN.sum(dim=1).double().mul_(ok_T), share2_TN.sum(dim=1).double(),
        share2_TN.amax(dim=1).double(), size_T.double(), exact_TN.abs().amax(dim=1).double(),
        largest_T.double(), ok_T.double(),
    ]).numpy()  # fmt: skip
    found = []
    for span, gone in zip(spans, lost):
        error2, exact2, floor2, share2, largest2, size, exact, output, ok = by_row[:, span]
        judged = int(ok.sum())
        parts = [share2.max() / columns, share2.sum() / (max(judged, 1) * columns)]
        parts.append(largest2.max() / (2.0 * math.log(2.0 * max(judged, 1) * columns)))
        if judged >= FEWEST_ROWS:
            parts.append(float(share2_TN[span].sum(dim=0).amax()) / judged)
        found.append(Shares(
            excess=math.sqrt(max(parts)) / FACTOR if judged else None,
            worst_row=int(share2.argmax()) if judged else None, error=math.sqrt(error2.sum()),
            exact=math.sqrt(exact2.sum()), floor=math.sqrt(floor2.sum()), max_abs=float(size.max()),
            exact_absmax=float(exact.max()), output_absmax=float(output.max()), lost=gone,
            left_out_rows=len(ok) - judged,
        ))  # fmt: skip
    return found
