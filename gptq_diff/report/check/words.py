"""What a case says, in lines: the same in the terminal, in JUnit and in Markdown."""

from __future__ import annotations

from gptq_diff.records import ALL_LINEARS, FAILED, CaseOutcome, Checked, CheckReport, Regression
from gptq_diff.text import one_line


def happened(outcome: CaseOutcome) -> str:
    """In a phrase: why it is as it is."""
    if outcome.state == FAILED:
        return "; ".join(details(outcome)[:2])
    if outcome.reason:
        return one_line(outcome.reason)
    count = len(outcome.checks)
    more = [", reused" if outcome.reused else "", f"; {outcome.baseline}" if outcome.baseline else ""]
    return f"{count} expectation{'s' if count != 1 else ''} held{''.join(more)}"


def details(outcome: CaseOutcome) -> list[str]:
    """A line for everything that is not as expected."""
    lines = [f"{_where(check)}: {difference}" for check in outcome.checks for difference in check.differences]
    lines += [grown_words(regression) for regression in outcome.regressions]
    if outcome.reason:
        lines.append(outcome.reason)
    return [one_line(line) for line in lines]


def grown_words(r: Regression) -> str:
    """A local error that grew, with what noise explains."""
    where = f"{r.backend}, {r.prompt}: "
    if r.layer == ALL_LINEARS:
        return f"{where}local errors grew {r.now:.3g} times, the mean of all linears; noise explains {r.allowed:.3g}"
    return (
        f"{where}the local error of {r.layer} grew from {r.before:.2e} to {r.now:.2e}; noise explains {r.allowed:.2e}"
    )


def _where(check: Checked) -> str:
    where = ", ".join(part for part in (check.backend, check.prompt) if part)
    return where if check.stated else f"{where} (no [[expect]] names it, so it has to agree)"


def self_test_line(report: CheckReport) -> str:
    """What the planted fault says of the guard."""
    test = report.self_test
    if test.outcome is None:
        return f"self-test: {test.reason}"
    if test.sees:
        return f"self-test: the planted fault was found (seed {report.seed}): {one_line(test.outcome.planted)}"
    return f"self-test FAILED: this guard does not see ({test.case}, seed {report.seed}): {one_line(test.reason)}"


def totals(report: CheckReport) -> dict[str, int]:
    """Cases by state."""
    counts = {"held": 0, "failed": 0, "skipped": 0, "error": 0}
    for case in report.cases:
        counts[case.state] += 1
    return counts
