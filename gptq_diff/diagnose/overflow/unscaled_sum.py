"""One scale a column: the whole unscaled sum narrowed to float16 before it is scaled, as Marlin does."""

from __future__ import annotations

from gptq_diff.checkpoint.dequant import unscaled_codes
from gptq_diff.diagnose.overflow.base import Lost, Reproduced, compare, first_lost
from gptq_diff.diagnose.overflow.sums import narrowed

SAYS = "the unscaled sum narrowed to float16 before the scale"
PATHS = frozenset({"marlin"})


def unscaled_sum(lost: Lost) -> Reproduced | None:
    """None where there is more than one scale a column."""
    if lost.linear.spec.groups != 1:
        return None
    codes_KN = unscaled_codes(lost.linear).double()
    sums_MN = lost.x_MK.double() @ codes_KN
    row, column = first_lost(lost)
    total = float(sums_MN[row, column])
    evidence = (
        f"row {int(lost.rows_M[row])}, column {column}: the sum of activation times code over all {len(lost.x_MK[0])} "
        f"rows of K is {total:,.0f} before the scale, beyond what float16 holds (65,504)",
    )
    products_K = (lost.x_MK[row].double() * codes_KN[:, column]).numpy()
    sums = narrowed("activations times codes, not yet scaled", int(lost.rows_M[row]), column, products_K)
    return compare(
        lost, sums_MN.abs() >= 65520, SAYS, evidence, PATHS, f"the sum reaches {total:,.0f} before the scale", sums
    )
