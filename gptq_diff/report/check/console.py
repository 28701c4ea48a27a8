"""A check in the terminal: a row a case, then what is not as expected."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptq_diff.records import CheckReport
from gptq_diff.report.check.words import details, happened, self_test_line, totals

MARKS = {"held": "green", "failed": "bold red", "skipped": "yellow", "error": "bold magenta"}


def show_check(out: Console, report: CheckReport) -> None:
    """The table, the lines below it, and one sentence."""
    table = Table("case", "state", "seconds", "what", box=None, pad_edge=False)
    for case in report.cases:
        seconds = f"{case.seconds:.1f}" if case.seconds else ""
        table.add_row(Text(case.name), Text(case.state, style=MARKS[case.state]), seconds, Text(happened(case)))
    for name in report.not_begun:
        table.add_row(Text(name), "not begun", "", "an earlier case did not hold")
    out.print(table)
    for case in report.cases:
        if case.bad:
            out.print(Text(f"{case.name}: {case.state}", style=MARKS[case.state]))
            for line in details(case):
                out.print(Text(f"  {line}"))
    out.print(Text(self_test_line(report)))
    counts = ", ".join(f"{count} {state}" for state, count in totals(report).items() if count)
    out.print(Text(f"{len(report.cases)} cases: {counts or 'none'}"))
