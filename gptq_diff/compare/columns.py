"""Judging columns: an output channel that errs alone must not hide behind the rounding of a massive one.

A row's norm is carried by its largest outputs. Where one column's weights are a hundred times larger than the others'
(those that make massive activations are), its rounding covers whatever the other columns do. So each column is also
held against its own floor, over the rows of one call, every row's squares divided by that row's energy, lest one
massive row cover the others in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare import refine
from gptq_diff.numerics import floors
from gptq_diff.numerics.floors import FEWEST_ROWS

if TYPE_CHECKING:
    from gptq_diff.compare.weight import Weight


def column_shares(
    layer: Weight, x_MK: torch.Tensor, error_MN: torch.Tensor, exact_MN: torch.Tensor, energy_M: torch.Tensor,
    spans: Sequence[tuple[str, slice]], factor: float,
) -> list[float]:  # fmt: skip
    """For every call, the largest error / (factor * floor) of a column; 0 for calls of fewer than 8 usable rows.

    Rows without energy (x all zero, or not finite and so set to zero) are left out.
    """
    weight_M = torch.where(energy_M > 0, 1.0 / energy_M, 0.0)
    long_enough = [i for i, (_, span) in enumerate(spans) if span.stop - span.start >= FEWEST_ROWS]
    judged = [i for i in long_enough if int((energy_M[spans[i][1]] > 0).sum()) >= FEWEST_ROWS]
    shares = [0.0] * len(spans)
    if not judged:
        return shares
    by_path: dict[str, list[int]] = {}
    for i in judged:
        by_path.setdefault(spans[i][0], []).append(i)
    for path, calls in by_path.items():
        slices = [spans[i][1] for i in calls]
        x2_CK, error2_CN, exact2_CN = (
            torch.stack([weight_M[s].float() @ t[s].square() for s in slices]) for t in (x_MK, error_MN, exact_MN)
        )
        energy_CN, outputs_C1 = layer.times_squares(x2_CK), torch.stack([weight_M[s].sum() for s in slices])[:, None]
        known = floors.Rows(energy_CN, exact2_CN.double(), layer.spec.in_features, outputs_C1, layer.spec.bits)
        floor2_CN = floors.expected_error2(path, known)
        for c, n in _suspects(error2_CN > (refine.SUSPECT * factor) ** 2 * floor2_CN):
            x, weight = x_MK[slices[c]], weight_M[slices[c]]
            sharper = refine.rounding(path, x, layer.columns(n), layer.linear, n)
            if sharper is not None:
                floor2_CN[c, n] = torch.maximum(floor2_CN[c, n], sharper.by_column(x, weight))
        worst_C = (error2_CN / floor2_CN.clamp_min(1e-300)).amax(dim=1).sqrt() / factor
        for i, share in zip(calls, worst_C.tolist()):
            shares[i] = share
    return shares


def _suspects(found_CN: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Of every call that has any: its place, and its columns."""
    places = torch.nonzero(found_CN.any(dim=1)).flatten().tolist()
    return [(c, torch.nonzero(found_CN[c]).flatten()) for c in places]
