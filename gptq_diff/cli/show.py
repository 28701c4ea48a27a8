"""Showing a finished report: JSON to stdout for programs, or the console for people. Never imports torch."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.text import Text

from gptq_diff.cli.output import console
from gptq_diff.records import Report
from gptq_diff.report.console import show
from gptq_diff.report.json_report import to_json
from gptq_diff.report.judged import read_all_judged
from gptq_diff.text import clean


def show_report(root: Path, report: Report, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show the report of the run at root."""
    if as_json:
        typer.echo(to_json(report))
        return
    out = console(quiet=quiet)
    show(out, report, read_all_judged(root, report), every_layer=verbose)
    if verbose:
        for log in sorted((root / "logs").glob("*.log")):
            out.print(Text(f"--- {log.name}\n{clean(log.read_text(encoding='utf-8', errors='replace'))}", style="dim"))
    page = root / "report.html"
    out.print(Text(f"report: {page if page.exists() else root / 'report.json'}"))
