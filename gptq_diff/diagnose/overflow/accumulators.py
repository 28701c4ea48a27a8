"""Lost outputs explained: the arithmetics that could have lost them, best first."""

from __future__ import annotations

from collections.abc import Callable

from gptq_diff.compare.figures import LARGEST_HALF
from gptq_diff.diagnose.overflow.base import Lost, Reproduced
from gptq_diff.diagnose.overflow.fused_lanes import fused_lanes
from gptq_diff.diagnose.overflow.scaled_sums import scaled_sums
from gptq_diff.diagnose.overflow.unscaled_sum import unscaled_sum
from gptq_diff.records import Finding

ARITHMETICS: tuple[Callable[[Lost], Reproduced | None], ...] = (fused_lanes, scaled_sums, unscaled_sum)
GOOD = 0.5
"""Share of lost outputs that must agree: orders of summation differ, and with them the borderline ones."""


def explain_lost(lost: Lost) -> Finding:
    """`accumulator-overflow` by the arithmetic that loses just these outputs, else `unknown` with what was tried."""
    layer = lost.linear.spec.name
    too_large = beyond_half(lost)
    if too_large is not None:
        return too_large
    fewer = lost.fewer_rows()
    tried = [found for arithmetic in ARITHMETICS if (found := arithmetic(fewer)) is not None]
    tried.sort(key=lambda r: (-round(r.match, 2), lost.path not in r.paths))
    summary = (
        f"{int(lost.lost_MN.sum())} outputs are infinite or NaN where the exact answer is at most "
        f"{lost.exact_absmax:,.0f}"
    )
    others = tuple(f"{r.says} would lose {r.both + r.only_here} ({r.both} of these)" for r in tried)
    if not tried or tried[0].match < GOOD:
        if bool((lost.nan_MN | ~lost.lost_MN).all()):
            return _never_written(layer, summary, others)
        ruled_out = f"none of {len(tried)} ways to overflow has them: " + "; ".join(others) if others else "nothing"
        return Finding("unknown", 0.3, (summary, ruled_out), layer)
    best, rest = tried[0], tried[1:]
    evidence = [f"{best.says}: {summary}", *best.evidence, _reproduces(best)]
    if best.paths.isdisjoint({lost.path}):
        evidence.append(f"the path that ran is said to be {lost.path}, whose sums should not do this")
    said = [f"{r.says} {'would lose none' if not r.both else f'has {r.both} of them'}" for r in rest if r.match < GOOD]
    if said:
        evidence.append("ruled out: " + "; ".join(said))
    summary = f"{best.says} ({best.short})" if best.short else best.says
    confidence = 0.95 if best.match > 0.9 else 0.8
    return Finding("accumulator-overflow", confidence, tuple(evidence), layer, summary, best.sums)


def beyond_half(lost: Lost) -> Finding | None:
    """`result-overflow` where the weights that the backend loaded have an answer beyond float16 at these outputs."""
    if lost.loaded_MN is None:
        return None
    beyond_MN = ~(lost.loaded_MN.abs() < LARGEST_HALF)
    both = int((beyond_MN & lost.lost_MN).sum())
    if both < GOOD * int((beyond_MN | lost.lost_MN).sum()):
        return None
    largest = float(lost.loaded_MN.abs().nan_to_num(0.0, 0.0, 0.0).max())
    evidence = (
        f"with the weights of the checkpoint that was loaded the exact answer itself, up to {largest:,.0f}, is beyond "
        f"float16 (65,504) at {both} of {int(lost.lost_MN.sum())} lost outputs",
        f"with those of the reference's checkpoint it is at most {lost.exact_absmax:,.0f}",
    )
    return Finding("result-overflow", 0.95, evidence, lost.linear.spec.name, "the result itself is beyond float16")


def _never_written(layer: str, summary: str, others: tuple[str, ...]) -> Finding:
    """NaN alone, where no sum overflows: memory that nobody wrote, or that was read too early."""
    why = "they are NaN and none is infinite, and no input, weight or partial sum is: " + "; ".join(others)
    return Finding("race-or-uninitialised", 0.7, (summary, why), layer, "outputs hold NaN that no sum makes")


def _reproduces(found: Reproduced) -> str:
    exact = not found.only_y and not found.only_here
    if exact:
        return f"computed that way, just these {found.both} outputs are lost"
    return (
        f"computed that way, {found.both} of them are lost, {found.only_y} are not, and {found.only_here} others are "
        "(sums in another order differ at the edge)"
    )
