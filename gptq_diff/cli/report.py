"""`gptq-diff report RUN`: show a finished run again."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.exit_codes import exit_code

if TYPE_CHECKING:
    from gptq_diff.records import Report


class Format(str, enum.Enum):
    """How to show it."""

    CONSOLE = "console"
    JSON = "json"
    MD = "md"
    JUNIT = "junit"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    format: Annotated[  # noqa: A002
        Format,
        typer.Option("--format", help="console, json, md (fits an issue's comment), or junit (XML for CI)."),
    ] = Format.CONSOLE,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there.", show_default="stdout"),
    ] = None,
    as_json: o.AsJson = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the report of a finished run; needs neither the model nor torch."""
    from gptq_diff.cli.show import show_report
    from gptq_diff.errors import UsageError
    from gptq_diff.report.json_report import read_report
    from gptq_diff.report.renderings import write_text

    if not (run / "run.json").exists():
        raise UsageError(f"{run} is not a run of gptq-diff: it has no run.json", "Give the --out of a finished run.")
    if as_json:
        format = Format.JSON  # noqa: A001
    if output is not None and format is Format.CONSOLE:
        raise UsageError("--output has no format to write", "Give --format md, json or junit.")
    found = read_report(run / "report.json")
    if format is Format.CONSOLE:
        show_report(run, found, as_json=False, quiet=False, verbose=verbose)
    elif output is not None:
        write_text(output, f"{_text(format, run, found).rstrip()}\n")
    else:
        typer.echo(_text(format, run, found).rstrip())
    raise typer.Exit(exit_code(found))


def _text(wanted: Format, root: Path, found: Report) -> str:
    from gptq_diff.report.json_report import to_json
    from gptq_diff.report.junit import junit
    from gptq_diff.report.renderings import RENDERINGS

    if wanted is Format.JSON:
        return to_json(found)
    if wanted is Format.JUNIT:
        return junit(found)
    return RENDERINGS[f"report.{wanted.value}"](found, root)
