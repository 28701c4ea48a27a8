"""Why one call went wrong, from its input and output alone: every cause that is found, with its evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import LARGEST_HALF
from gptq_diff.diagnose.case import Case, case_of
from gptq_diff.diagnose.common_factor import common_factor, fitted_factor
from gptq_diff.diagnose.mixing import slice_rows
from gptq_diff.diagnose.mosaic import mosaic, mostly, patterns_of, searched_beneath
from gptq_diff.diagnose.overflow.accumulators import explain_lost
from gptq_diff.diagnose.overflow.base import Lost
from gptq_diff.diagnose.rounded_result import rounded_result
from gptq_diff.diagnose.search import FEW_ROWS, Search
from gptq_diff.diagnose.state import State
from gptq_diff.records import Finding

if TYPE_CHECKING:
    from gptq_diff.diagnose.parts import Source

MOST_ROWS = 96
"""Rows that hypotheses are tried on."""
SAMPLE = (160, 32)
"""Columns that hypotheses are tried on: so many that err, so many that do not."""
MOST_COLUMNS = 2048
"""Columns that are unpacked at a time."""
AS_GOOD = 1.25
"""Another explanation that leaves at most so many times as much cannot be told apart."""

FEW_CAUSES = 2
"""With more, columns are looked at one by one: what one hypothesis has spoiled may have been mended by another."""
MOST_WRONG = 0.1
"""Share of the columns that a simpler explanation may leave wrong, if something else explains them."""
PIECED = 0.8
"""Confidence where columns had to be explained apart."""


def explain_call(
    source: Source, path: str, x_MK: torch.Tensor, y_MN: torch.Tensor, w_KN: torch.Tensor,
    loaded_KN: torch.Tensor | None = None,
) -> list[Finding]:  # fmt: skip
    """Findings on one captured call of a bad layer, surest first; one `unknown` where nothing explains it.

    x_MK: [M, K] as captured. y_MN: [M, N] as captured, without bias. w_KN: float32, the exact weight;
    loaded_KN: that of the checkpoint which the backend loaded, where it is another.
    """
    case = case_of(source, path, x_MK, y_MN, w_KN)
    return [] if case is None else explain_case(case, x_MK, y_MN, loaded_KN)


def explain_case(
    case: Case, x_MK: torch.Tensor, y_MN: torch.Tensor, loaded_KN: torch.Tensor | None = None
) -> list[Finding]:
    """`explain_call` for a case that is there already; x_MK, y_MN: the whole call's."""
    findings = result_overflow(case, y_MN)
    lost = lost_outputs(case, x_MK, y_MN, loaded_KN)
    if lost is not None:
        findings.append(explain_lost(lost))
    if bool(case.bad.any()) or lost is None:
        findings += explain_values(case)
    return findings


def result_overflow(case: Case, y_MN: torch.Tensor) -> list[Finding]:
    """`result-overflow` for outputs that are lost where the exact answer is beyond float16; nothing where none is."""
    lost_MN = ~torch.isfinite(y_MN[case.rows_M]) & (case.exact_MN.abs() >= LARGEST_HALF)
    count = int(lost_MN.sum())
    if not count:
        return []
    largest = float(case.exact_MN.abs().max())
    evidence = f"at {count} lost outputs the exact answer itself, up to {largest:,.0f}, is beyond float16 (65,504)"
    return [Finding("result-overflow", 0.95, (evidence,), case.source.spec.name, "the result itself is beyond float16")]


def lost_outputs(case: Case, x_MK: torch.Tensor, y_MN: torch.Tensor, loaded_KN: torch.Tensor | None) -> Lost | None:
    """Outputs that are not finite where the exact answer fits in float16; None where there are none."""
    rows_M = case.rows_M
    spoiled_N = ~case.source.own.scales.isfinite().all(dim=0)
    lost_MN = ~torch.isfinite(y_MN[rows_M]) & (case.exact_MN.abs() < LARGEST_HALF) & ~spoiled_N
    if not bool(lost_MN.any()):
        return None
    x_MK = x_MK[rows_M].float()
    loaded_MN = None if loaded_KN is None else x_MK @ loaded_KN
    nan_MN = torch.isnan(y_MN[rows_M])
    return Lost(case.source.own.linear, case.path, x_MK, lost_MN, case.exact_MN, rows_M, nan_MN, loaded_MN)


def explain_values(case: Case) -> list[Finding]:
    """Finite outputs that err more than rounding explains."""
    case = case.some_rows(MOST_ROWS)
    search = Search(case, sample(case.bad))
    states = search.run()
    best = states[0]
    if not search.suffices(best):
        rounded = rounded_result(case)
        if rounded is not None:
            return [rounded]
        paired = search.paired()
        states = states if paired is None else [paired, *states]
        best = states[0]
    pieced = fewer_causes(search, states)
    if pieced is not None:
        return findings_of(case, search, pieced, PIECED, None)
    if not search.suffices(best) or one_number_explains_more(case, search, best):
        return [unknown(case, search, best)]
    simple = simpler(search, states)
    if simple is not None:
        found = findings_of(case, search, simple, 0.95, None)
        under = beneath(case, search, simple, {f.cause for f in found})
        if under:
            return found + under
    equal = [s for s in states[1:] if _as_good(s, best) and causes_of(s).isdisjoint(causes_of(best))]
    found = findings_of(case, search, best, 0.5 if equal else 0.95, _next_best(search, states))
    for state in equal[:1]:
        found += findings_of(case, search, state, 0.4, None)
    return found + beneath(case, search, best, {f.cause for f in found})


def fewer_causes(search: Search, states: list[State]) -> State | None:
    """Columns explained apart, where the best state is no explanation or needs more causes than that does."""
    best = states[0]
    if search.suffices(best) and len(causes_of(best)) <= FEW_CAUSES:
        return None
    pieced = mosaic(search, states)
    if pieced is None or (search.suffices(best) and len(causes_of(pieced)) >= len(causes_of(best))):
        return None
    return pieced


def one_number_explains_more(case: Case, search: Search, best: State) -> bool:
    """Whether y is the exact answer times a number, to less than a state leaves that lets groups or columns choose.

    Of a single row some choice of neighbours' scales comes near to anything.
    """
    fitted = None if search.whole(best) is not None else fitted_factor(case)
    return fitted is not None and fitted[1] < best.left


def simpler(search: Search, states: list[State]) -> State | None:
    """A state that says of all columns what the best one says of some groups or columns, and is wrong in a few."""
    best = states[0]
    if search.whole(best) is not None:
        return None
    families = {a.variant.family for a in best.applied}
    alike = (s for s in states[1:] if {a.variant.family for a in s.applied} == families and search.whole(s) is not None)
    return next((s for s in alike if s.wrong <= MOST_WRONG * len(search.columns)), None)


def beneath(case: Case, search: Search, best: State, known: set[str]) -> list[Finding]:
    """What else is wrong in a few columns, beneath something that is wrong in all of them, or in some."""
    whole = search.whole(best)
    if whole is None:
        return beneath_some(case, search, best, known)
    everything = torch.arange(case.exact_MN.shape[1])
    parts = [everything[first : first + MOST_COLUMNS] for first in range(0, len(everything), MOST_COLUMNS)]
    worse = torch.cat([search.worse_columns(whole, part) for part in parts])
    if not len(worse) or len(worse) > len(everything) // 2:
        return []
    worse = worse[: SAMPLE[0]]
    inner = Search(case.of_columns(worse), worse, whole)
    states = inner.run()
    state, columns = states[0], len(worse)
    if not inner.suffices(state):
        state, columns = mosaic(inner, states) or state, len(worse)
    if not inner.suffices(state):
        state, mask_C = mostly(inner, states)
        columns = int(mask_C.sum())
        if 2 * columns < len(worse):
            return []
    return beneath_findings(case, inner, state, columns, known)


def beneath_some(case: Case, search: Search, best: State, known: set[str]) -> list[Finding]:
    """The same where the best state holds in some groups or columns: of the sampled columns alone."""
    worse_C = search.worse(best)
    if not bool(worse_C.any()) or len(case.rows_M) < FEW_ROWS or 2 * int(worse_C.sum()) > len(worse_C):
        return []
    given = [(), *patterns_of([(best, ~worse_C)])]
    under = searched_beneath(search, given, worse_C)
    return [] if under is None else beneath_findings(case, *under, int(worse_C.sum()), known)


def beneath_findings(case: Case, search: Search, state: State, columns: int, known: set[str]) -> list[Finding]:
    """What is found there and was not known."""
    return [
        replace(f, evidence=(f"beneath the above, in {columns} columns", *f.evidence))
        for f in findings_of(case, search, state, 0.8, None)
        if f.cause not in known
    ]


def sample(bad_N: torch.Tensor) -> torch.Tensor:
    """int64: columns that err, evenly over the layer, and some that do not; all alike where none stands out."""
    bad, good = torch.nonzero(bad_N).flatten(), torch.nonzero(~bad_N).flatten()
    if not len(bad):
        bad, good = good, bad
    chosen = [c[:: max(1, -(-len(c) // most))] if len(c) else c for c, most in zip((bad, good), SAMPLE)]
    return torch.cat(chosen).sort().values


def causes_of(state: State) -> set[str]:
    """The causes that a state names."""
    return {a.variant.cause for a in state.applied}


def _as_good(state: State, best: State) -> bool:
    return len(state.applied) <= len(best.applied) and state.explains and state.left < AS_GOOD * best.left


def _next_best(search: Search, states: list[State]) -> str:
    best = causes_of(states[0])
    other = next((s for s in states[1:] if s.applied and not causes_of(s) & best), None)
    if other is None:
        return f"{search.tried} computations were tried; no other explains a part of it"
    said = " and ".join(a.variant.cause for a in other.applied)
    return f"{search.tried} computations were tried; the next best cause ({said}) leaves {other.left:.3g} times"


def findings_of(case: Case, search: Search, state: State, confidence: float, ruled_out: str | None) -> list[Finding]:
    """One finding a cause."""
    found: dict[str, Finding] = {}
    errs = int(case.bad.sum()) or case.exact_MN.shape[1]
    for applied in state.applied:
        what = f"y is what it would be if {applied.says}"
        if applied.blocks is not None:
            rows = slice_rows(case.source.spec.in_features)
            kind = f"slices of {rows} rows" if applied.variant.scope == "slices" else "groups"
            what += f" in {kind} {_listed(applied.blocks)}"
        evidence = [
            what,
            f"that leaves {state.left:.2g} times the expected rounding, of {search.start.left:.3g} "
            f"({search.share(state):.2%} of the squared error); {errs} of {case.exact_MN.shape[1]} columns err",
        ]
        if len(causes_of(state)) > 1:
            evidence.append(f"{len(causes_of(state))} causes together")
        if ruled_out:
            evidence.append(ruled_out)
        cause, layer = applied.variant.cause, case.source.spec.name
        found.setdefault(cause, Finding(cause, confidence, tuple(evidence), layer, applied.says))
    return list(found.values())


def unknown(case: Case, search: Search, best: State) -> Finding:
    """Nothing explains it: what is known of the error, and what was ruled out."""
    errs = int(case.bad.sum())
    evidence = [f"{errs or 'no single one'} of {case.exact_MN.shape[1]} columns err beyond rounding"]
    factor = common_factor(case)
    if factor:
        evidence.append(factor)
    tried = ", ".join(dict.fromkeys(v.cause for vs in search.families.values() for v in vs))
    evidence.append(f"ruled out by {search.tried} computations: {tried}")
    if best.applied:
        said = " and ".join(a.variant.cause for a in best.applied)
        evidence.append(
            f"the nearest ({said}) leaves {best.left:.3g} times the expected rounding, of {search.start.left:.3g}"
        )
    return Finding("unknown", 0.3, tuple(evidence), case.source.spec.name)


def _listed(blocks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, blocks[:8]))
    return shown if len(blocks) <= 8 else f"{shown} and {len(blocks) - 8} more"
