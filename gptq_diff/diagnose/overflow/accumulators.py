"""Lost outputs explained: the arithmetics that could have lost them, best first."""

from __future__ import annotations

from collections.abc import Callable

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
    fewer = lost.fewer_rows()
    tried = [found for arithmetic in ARITHMETICS if (found := arithmetic(fewer)) is not None]
    tried.sort(key=lambda r: (-round(r.match, 2), lost.path not in r.paths))
    summary = (
        f"{int(lost.lost_MN.sum())} outputs are infinite or NaN where the exact answer is at most "
        f"{lost.exact_absmax:,.0f}"
    )
    others = tuple(f"{r.says} would lose {r.both + r.only_here} ({r.both} of these)" for r in tried)
    if not tried or tried[0].match < GOOD:
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
    return Finding("accumulator-overflow", 0.95 if best.match > 0.9 else 0.8, tuple(evidence), layer, summary)


def _reproduces(found: Reproduced) -> str:
    exact = not found.only_y and not found.only_here
    if exact:
        return f"computed that way, just these {found.both} outputs are lost"
    return (
        f"computed that way, {found.both} of them are lost, {found.only_y} are not, and {found.only_here} others are "
        "(sums in another order differ at the edge)"
    )
