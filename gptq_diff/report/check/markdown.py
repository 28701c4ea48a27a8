"""A check for a job's page, as GitHub and GitLab render Markdown."""

from __future__ import annotations

from gptq_diff.records import CheckReport
from gptq_diff.report.check.words import details, happened, self_test_line, totals
from gptq_diff.report.markdown_text import cell, code, prose, table, within

LIMIT = 60_000
"""Characters: GitHub takes a megabyte a step, comments take 65,536."""
MARKS = {"held": "✅ held", "failed": "❌ failed", "skipped": "⏭️ skipped", "error": "❓ not judged"}
HEADS = {0: "every expectation held", 1: "something is not as expected", 2: "a case is wrong", 3: "could not judge"}


def check_markdown(report: CheckReport) -> str:
    """A heading, the table, what is not as expected, the self-test, what it ran on."""
    counts = ", ".join(f"{count} {state}" for state, count in totals(report).items() if count)
    lines = [f"## gptq-diff check: {HEADS[report.exit_code]}", "", f"{len(report.cases)} cases: {counts or 'none'}. "
             f"{prose(self_test_line(report))}", ""]  # fmt: skip
    rows = [
        [cell(case.name), MARKS[case.state], f"{case.seconds:.1f}", prose(happened(case), 300)] for case in report.cases
    ]
    rows += [[cell(name), "not begun", "", "an earlier case did not hold"] for name in report.not_begun]
    lines += table(["case", "", "seconds", ""], rows)
    for case in report.cases:
        if case.bad:
            lines += ["", f"### {code(case.name)}", "", *(f"- {prose(line, 600)}" for line in details(case))]
    facts = ", ".join(f"{name} {value}" for name, value in report.environment.items() if value)
    compared = f" Baseline: {code(report.baseline)}." if report.baseline else ""
    end = ["", f"gptq-diff {prose(report.gptq_diff)}, seed {report.seed}, {prose(facts)}.{compared}"]
    return "\n".join([*within(lines, LIMIT, "check.json has them"), *end]) + "\n"
