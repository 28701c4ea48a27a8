"""With every check one fault is planted, and must be found: green means that the guard sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gptq_diff.cases.case import Case
from gptq_diff.cases.expectations import HEALTHY, check_expectations
from gptq_diff.cases.library import find_case, shipped_names
from gptq_diff.records import HELD, SKIPPED, CaseOutcome, Expectation, SelfTest

PREFIX = "fault-"
ELSEWHERE = frozenset({
    "fault-accumulator-overflow", "fault-all-reduce", "fault-bias", "fault-nan-input", "fault-nan-weights",
    "fault-outside-linears", "fault-result-overflow",
})  # fmt: skip
"""Found by what is not finite, or by the judges of other steps: they would show though no product's error did."""


def candidates() -> tuple[str, ...]:
    """Shipped cases that plant a fault of finite size in the product of a linear of a tiny model."""
    return tuple(name for name in shipped_names() if name.startswith(PREFIX) and name not in ELSEWHERE)


def drawn(seed: int) -> Case:
    """The fault of that seed: consecutive seeds go through all of them in turn."""
    names = candidates()
    return find_case(names[seed % len(names)])


def verdict(case: Case, outcome: CaseOutcome | None) -> SelfTest:
    """Whether the guard sees: it found the fault where it is, by its cause, and would not have called it healthy."""
    if outcome is None:
        return SelfTest(case.name, None, sees=False, reason="it was not run")
    if outcome.state == SKIPPED:
        return SelfTest(case.name, outcome, sees=False, reason=f"it was skipped: {outcome.reason}")
    said = "; ".join(d for check in outcome.checks for d in check.differences) or outcome.reason
    if outcome.state != HELD:
        return SelfTest(case.name, outcome, sees=False, reason=said)
    if not _refuses_health(outcome, case.expect):
        reason = "an expectation of health holds on the planted fault: expectations are not checked"
        return SelfTest(case.name, outcome, sees=False, reason=reason)
    return SelfTest(case.name, outcome, sees=True)


def _refuses_health(outcome: CaseOutcome, expected: Sequence[Expectation]) -> bool:
    """Whether what the fault did would fail a case that expects everything to agree."""
    healthy = [replace(one, status=HEALTHY, layer=None, cause=None, collapsed=None) for one in expected]
    return any(not check.held for check in check_expectations(healthy, outcome.seen))
