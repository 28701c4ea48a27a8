"""What is known of y where nothing explains it."""

from __future__ import annotations

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import Case


def common_factor(case: Case) -> str | None:
    """The factor, in words, where every output is the exact answer times one number; None where it is not so."""
    fitted = fitted_factor(case)
    if fitted is None:
        return None
    return f"y is the exact answer times {fitted[0]:.4g} in the {int(case.suspects.sum())} columns that err"


def fitted_factor(case: Case) -> tuple[float, float] | None:
    """(the factor, what it leaves in times the expected rounding); None where it leaves more than rounding."""
    bad_N = case.suspects
    exact_MC = torch.where(case.known_MN, case.exact_MN, 0.0)[:, bad_N].double()
    y_MC = case.y_MN[:, bad_N].double()
    weight_M1 = case.weight_M[:, None]
    size = float((weight_M1 * exact_MC.square()).sum())
    if size == 0:
        return None
    factor = float((weight_M1 * exact_MC * y_MC).sum()) / size
    left2_C = case.weight_M @ (y_MC - factor * exact_MC).square()
    left = float((left2_C / case.floor2_N[bad_N]).mean().sqrt())
    return None if left > FACTOR else (factor, left)
