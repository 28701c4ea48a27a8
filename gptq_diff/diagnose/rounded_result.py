"""A result rounded to bfloat16 by a path whose own rounding hides how: told by the outputs' bits."""

from __future__ import annotations

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.results import are_bfloat16, suspect_outputs
from gptq_diff.records import Finding

BRAIN_RMS = 2.0**-7 / 12**0.5 * 0.735
"""rms relative error of rounding to 8 significant bits, the significand spread logarithmically."""


def rounded_result(case: Case) -> Finding | None:
    """`dtype` where all outputs are bfloat16 values and no more is wrong than that; None else."""
    values = suspect_outputs(case)
    if not are_bfloat16(values):
        return None
    rounded2_N = BRAIN_RMS**2 * (case.weight_M @ case.exact_MN.double().square())
    left = case.left(case.suspects, rounded2_N)
    if left > FACTOR / 2:
        return None
    evidence = (
        f"all {values.numel():,} outputs looked at are values that bfloat16 holds; of float16 values one in eight is",
        f"with that rounding counted, the error is {left:.2g} times what is expected",
    )
    return Finding("dtype", 0.9, evidence, case.source.spec.name, "the result had been rounded to bfloat16")
