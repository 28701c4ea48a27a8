"""What y alone betrays: values cut off at one magnitude, or all of them bfloat16; a common factor."""

from __future__ import annotations

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import Case

FEWEST = 64
"""Outputs from which their bits are evidence: one in eight halves is a bfloat16 by chance."""
BRAIN_RMS = 2.0**-7 / 12**0.5 * 0.735
"""rms relative error of rounding to 8 significant bits, the significand spread logarithmically."""


def clamped(case: Case) -> tuple[str, ...]:
    """Evidence that values were cut off at one magnitude; empty where they were not.

    Outputs of that largest magnitude stand where the exact answer is beyond it, with its sign; all others are right.
    """
    limit = float(case.y_MN.abs().max())
    cut_MN = (case.exact_MN.abs() > limit * (1 + 2.0**-9)) & case.known_MN
    if limit <= 0 or not bool(cut_MN.any()):
        return ()
    at_limit = (case.y_MN * case.exact_MN.sign())[cut_MN] >= limit * (1 - 2.0**-9)
    if not bool(at_limit.all()):
        return ()
    left_MN = torch.where(case.known_MN & ~cut_MN, case.y_MN - case.exact_MN, 0.0)
    left2_N = case.weight_M @ left_MN.double().square()
    if float((left2_N / case.floor2_N).mean().sqrt()) > FACTOR:
        return ()
    return (
        f"{int(cut_MN.sum())} outputs are {limit:,.4g} or its negative where the exact answer is beyond it, "
        f"up to {float(case.exact_MN.abs().max()):,.4g}",
        "all other outputs are as rounding explains",
    )


def brain_outputs(case: Case) -> tuple[str, ...]:
    """Evidence that y was rounded to bfloat16 on its way; empty where it was not."""
    bad_N = case.bad if bool(case.bad.any()) else torch.ones_like(case.bad)
    counted_MN = case.known_MN & (case.y_MN != 0) & bad_N
    values = case.y_MN[counted_MN]
    values = values[values.abs() >= 2.0**-14]  # half subnormals have fewer bits of their own
    if values.numel() < FEWEST or not torch.equal(values.to(torch.bfloat16).float(), values):
        return ()
    rounded2_N = BRAIN_RMS**2 * (case.weight_M @ case.exact_MN.double().square())
    left = (case.error2_N / (case.floor2_N + rounded2_N))[bad_N].mean().sqrt()
    if float(left) > FACTOR / 2:
        return ()
    return (
        f"all {values.numel():,} outputs (in {int(bad_N.sum())} columns) are values that bfloat16 holds; of halves one "
        "in eight would be",
        f"with that rounding counted, the error is {float(left):.2g} times what is expected",
    )


def common_factor(case: Case) -> str | None:
    """The factor, in words, where every output is the exact answer times one number; None where it is not so."""
    bad_N = case.bad if bool(case.bad.any()) else torch.ones_like(case.bad)
    exact_MC = torch.where(case.known_MN, case.exact_MN, 0.0)[:, bad_N].double()
    y_MC = case.y_MN[:, bad_N].double()
    weight_M1 = case.weight_M[:, None]
    size = float((weight_M1 * exact_MC.square()).sum())
    if size == 0:
        return None
    factor = float((weight_M1 * exact_MC * y_MC).sum()) / size
    left2_C = case.weight_M @ (y_MC - factor * exact_MC).square()
    if float((left2_C / case.floor2_N[bad_N]).mean().sqrt()) > FACTOR:
        return None
    return f"y is the exact answer times {factor:.4g} in the {int(bad_N.sum())} columns that err"
