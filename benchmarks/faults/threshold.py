"""How large a planted fault's own effect is, in units of the detection threshold.

The effect is worked out from what was planted (x times the difference of the two weights, or what a spoiled product
was changed by), never from what was judged. Of the judging code only the threshold's definition is taken over: the
factor and the noise floors. A share of 1 or more is above the threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.compare import refine
from gptq_diff.compare.columns import FEWEST_ROWS
from gptq_diff.compare.figures import FACTOR
from gptq_diff.numerics import floors
from gptq_diff.numerics.partial_sums import half_variance

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

Wide = npt.NDArray[np.float64]


def share_of_product(path: str, linear: PackedLinear, w_KN: Wide, x_MK: Wide, change_MN: Wide) -> float:
    """The largest of the tensor's, any row's and any column's effect over the threshold; inf for NaN and infinities.

    linear, w_KN: the sound weight, packed and not. Rows of x that are not finite count for nothing.
    """
    rows = np.isfinite(x_MK).all(axis=1)
    x_MK, change_MN = x_MK[rows], change_MN[rows]
    if not len(x_MK):
        return 0.0
    if not np.isfinite(change_MN).all():
        return float("inf")
    finite_N = np.isfinite(w_KN).all(axis=0)
    w_KN = np.where(finite_N, w_KN, 0.0)
    change2_MN = np.where(finite_N, change_MN, 0.0) ** 2
    exact2_MN = (x_MK @ w_KN) ** 2
    energy_M = x_MK**2 @ (w_KN**2).sum(axis=1)
    x, w = torch.from_numpy(x_MK).float(), torch.from_numpy(w_KN).float()
    sharper = refine.rounding(path, x, w, linear, torch.arange(w.shape[1]))
    known = floors.Rows(_t(energy_M), _t(exact2_MN.sum(axis=1)), w.shape[0], float(w.shape[1]), linear.spec.bits)
    floor2_M = floors.expected_error2(path, known).numpy()
    if sharper is not None:
        floor2_M = np.maximum(floor2_M, sharper.by_row(w).numpy())
    change2_M = change2_MN.sum(axis=1)
    worst = max(float(_ratio(change2_M, floor2_M).max()), float(_ratio(change2_M.sum(), floor2_M.sum())))
    usable = energy_M > 0
    if usable.sum() >= FEWEST_ROWS:
        weight_M = np.where(usable, 1.0 / np.where(usable, energy_M, 1.0), 0.0)
        known = floors.Rows(
            _t((weight_M[:, None] * x_MK**2).sum(axis=0) @ w_KN**2), _t(weight_M @ exact2_MN), w.shape[0],
            float(weight_M.sum()), linear.spec.bits,
        )  # fmt: skip
        floor2_N = floors.expected_error2(path, known).numpy()
        if sharper is not None:
            floor2_N = np.maximum(floor2_N, sharper.by_column(x, _t(weight_M)).numpy())
        worst = max(worst, float(_ratio(weight_M @ change2_MN, floor2_N).max()))
    return float(np.sqrt(worst)) / FACTOR


def share_of_sum(terms_TMN: Wide, change_MN: Wide) -> float:
    """The same for a sum of float16 terms [T, M, N] that is rounded once an addition: by tensor and by row."""
    total_MN = terms_TMN.sum(axis=0)
    rows = np.isfinite(total_MN).all(axis=1)
    if not rows.any():
        return 0.0
    largest_MN = np.maximum(np.abs(terms_TMN).max(axis=0), np.abs(total_MN))[rows]
    floor2_M = half_variance(_t(largest_MN)).numpy().sum(axis=1) * (len(terms_TMN) - 1)
    change2_M = (change_MN[rows] ** 2).sum(axis=1)
    worst = max(float(_ratio(change2_M, floor2_M).max()), float(_ratio(change2_M.sum(), floor2_M.sum())))
    return float(np.sqrt(worst)) / FACTOR


def share_of_input(healthy_MK: Wide, reference_MK: Wide, faulty_MK: Wide) -> float:
    """For a fault between linears: what it changes in the next linear's input, over FACTOR times what the same
    backend's rounding changes there without it; by tensor. inf where the input is no longer finite.
    """
    if not np.isfinite(faulty_MK).all():
        return float("inf")
    noise = float(np.linalg.norm(healthy_MK - reference_MK))
    return float(np.linalg.norm(faulty_MK - healthy_MK)) / max(FACTOR * noise, 1e-30)


def _ratio(a: Wide, b: Wide) -> Wide:
    return np.asarray(a / np.maximum(b, 1e-300))


def _t(values: Wide) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
