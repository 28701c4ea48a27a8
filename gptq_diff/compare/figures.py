"""The figures of every captured row of one layer, computed for all backends, prompts and steps together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.compare import refine
from gptq_diff.compare.columns import column_shares
from gptq_diff.compare.exact_answer import Rows
from gptq_diff.compare.weight import Weight
from gptq_diff.numerics import floors
from gptq_diff.numerics.floors import FACTOR as FACTOR
from gptq_diff.numerics.magnitude import row_absmax
from gptq_diff.numerics.partial_sums import row_norm2, weighted_squares

if TYPE_CHECKING:
    from gptq_diff.records import LayerSpec

LARGEST_HALF = 65520.0
"""Values of at least this size round to infinity in float16."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowFigures:
    """One entry a row, float64 [M] unless said otherwise; rows whose x is not finite hold zeros.

    error2, exact2, floor2: squared norms over the columns judged: y - exact, exact, expected rounding error.
    overflow: y not finite although the exact answer fits in float16; too_large: y not finite, the exact answer finite
    and beyond float16; spoiled: y not finite in a column whose scales are not finite (int64 each).
    column_shares: one entry a call, the largest share of the threshold that a column reached.
    """

    finite: npt.NDArray[np.bool_]
    error2: Floats
    exact2: Floats
    floor2: Floats
    max_abs: Floats
    exact_absmax: Floats
    x_absmax: Floats
    y_absmax: Floats
    overflow: npt.NDArray[np.int64]
    too_large: npt.NDArray[np.int64]
    spoiled: npt.NDArray[np.int64]
    column_shares: Floats


Spans = Sequence[tuple[str, slice]]
"""(path that ran, its rows) of every call."""


def row_figures(weight: Weight, rows: Rows, y_MN: torch.Tensor, spans: Spans) -> RowFigures:
    """Judge all rows at once. y_MN: float32, what the backends gave; it is overwritten."""
    spoiled_N = weight.bad_N | weight.loaded_bad_N
    any_spoiled = bool(spoiled_N.any())
    exact_MN, norm2_K = weight.exact(rows)
    y_absmax = row_absmax(y_MN)
    overflow = too_large = spoiled = torch.zeros(len(y_MN), dtype=torch.int64, device=y_MN.device)
    if not bool(torch.isfinite(y_absmax).all()):
        wrong_MN = ~torch.isfinite(y_MN)
        y_absmax = torch.where(wrong_MN, 0.0, y_MN).abs_().amax(dim=1)
        y_MN = torch.where(wrong_MN, exact_MN, y_MN)
        wrong_MN &= rows.finite_M[:, None]
        large_MN = exact_MN.abs() >= LARGEST_HALF
        overflow = (wrong_MN & ~large_MN & ~spoiled_N).sum(dim=1)
        too_large = (wrong_MN & large_MN & ~spoiled_N).sum(dim=1)
        spoiled = (wrong_MN & spoiled_N).sum(dim=1)
    error_MN = y_MN.sub_(exact_MN)
    if any_spoiled:
        error_MN[:, spoiled_N] = 0.0
    error2, exact2 = row_norm2(error_MN), row_norm2(exact_MN)
    energy = weighted_squares(rows.x_MK, norm2_K)
    floor2 = _floor2(weight.spec, energy, exact2, spans)
    floor2 = _refine(weight, rows, error2, floor2, spans)
    by_column = column_shares(weight, rows.x_MK, error_MN, exact_MN, energy, spans, FACTOR)
    return _as_numpy(
        rows.finite_M, by_column, error2=error2, exact2=exact2, floor2=floor2, max_abs=row_absmax(error_MN),
        exact_absmax=row_absmax(exact_MN), x_absmax=row_absmax(rows.x_MK), y_absmax=y_absmax,
        overflow=overflow, too_large=too_large, spoiled=spoiled,
    )  # fmt: skip


def _as_numpy(finite_M: torch.Tensor, by_column: list[float], **figures: torch.Tensor) -> RowFigures:
    finite = finite_M.cpu().numpy()
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.where(finite, (f.double() if f.is_floating_point() else f).cpu().numpy(), 0)
        for name, f in figures.items()
    }
    return RowFigures(finite=finite, column_shares=np.array(by_column), **arrays)


def _floor2(spec: LayerSpec, energy: torch.Tensor, exact2: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Closed-form expected squared error of every row, by the path that each call took."""
    known = floors.Rows(energy, exact2, spec.in_features, spec.out_features, spec.bits)
    floor2 = torch.zeros_like(energy)
    models: dict[str, torch.Tensor] = {}
    for path, span in spans:
        if path not in models:
            models[path] = floors.expected_error2(path, known)
        floor2[span] = models[path][span]
    return floor2


def _refine(weight: Weight, rows: Rows, error2: torch.Tensor, floor2: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Where the closed form does not explain a row, ask for the sharper figure of that row's own partial sums."""
    suspect = (error2 > (refine.SUSPECT * FACTOR) ** 2 * floor2) & rows.finite_M
    if not bool(suspect.any()):
        return floor2
    by_path: dict[str, list[int]] = {}
    for path, span in spans:
        found = (torch.nonzero(suspect[span]).flatten() + span.start).tolist()
        by_path.setdefault(path, []).extend(found)
    for path, indices in by_path.items():
        if indices:
            w_KN = weight.clean_KN
            every = torch.arange(w_KN.shape[1], device=w_KN.device)
            sharper = refine.rounding(path, rows.x_MK[indices], w_KN, weight.linear, every)
            if sharper is not None:
                floor2[indices] = torch.maximum(floor2[indices], sharper.by_row(w_KN))
    return floor2
