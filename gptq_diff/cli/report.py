"""`gptq-diff report RUN`: show a finished run again."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.exit_codes import exit_code


class Format(str, enum.Enum):
    """How to show it."""

    CONSOLE = "console"
    JSON = "json"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    format: Annotated[Format, typer.Option("--format", help="console or json.")] = Format.CONSOLE,  # noqa: A002
    as_json: o.AsJson = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the report of a finished run; needs neither the model nor torch."""
    from gptq_diff.cli.show import show_report
    from gptq_diff.errors import UsageError
    from gptq_diff.report.json_report import read_report

    if not (run / "run.json").exists():
        raise UsageError(f"{run} is not a run of gptq-diff: it has no run.json", "Give the --out of a finished run.")
    found = read_report(run / "report.json")
    show_report(run, found, as_json=as_json or format is Format.JSON, quiet=False, verbose=verbose)
    raise typer.Exit(exit_code(found))
