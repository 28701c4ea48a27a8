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
    HTML = "html"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    format: Annotated[  # noqa: A002
        Format,
        typer.Option(
            "--format", help="console, json, md (fits an issue's comment), junit (XML for CI), or html (one page)."
        ),
    ] = Format.CONSOLE,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there.", show_default="stdout; RUN/report.html"),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="As it may be shared: no paths, prompts, answers or text of logs.")
    ] = False,
    include_prompts: Annotated[
        bool, typer.Option("--include-prompts", help="With --redact: show prompts and answers all the same.")
    ] = False,
    as_json: o.AsJson = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the report of a finished run; needs neither the model nor torch."""
    from gptq_diff.cli.show import show_report
    from gptq_diff.errors import UsageError
    from gptq_diff.report.json_report import read_report
    from gptq_diff.whole_file import write_whole

    if not (run / "run.json").exists():
        raise UsageError(f"{run} is not a run of gptq-diff: it has no run.json", "Give the --out of a finished run.")
    if as_json:
        format = Format.JSON  # noqa: A001
    if output is not None and format is Format.CONSOLE:
        raise UsageError("--output has no format to write", "Give --format html, md, json or junit.")
    if redact:
        if format is Format.HTML and output is None:
            raise UsageError("--redact writes no page into the run", "Say where to with -o FILE.")
        if format is Format.CONSOLE:
            raise UsageError("--redact is for what is shared", "Give --format html, md, json or junit.")
    elif include_prompts:
        raise UsageError("--include-prompts goes with --redact", "Without it prompts are shown anyway.")
    found = read_report(run / "report.json")
    if format is Format.HTML and output is None:
        output = run / "report.html"  # no terminal wants it
    if redact:
        text = _redacted(format, run, include_prompts=include_prompts)
    elif format is not Format.CONSOLE:
        text = _text(format, run, found)
    if format is Format.CONSOLE:
        show_report(run, found, as_json=False, quiet=False, verbose=verbose)
    elif output is not None:
        write_whole(output, f"{text.rstrip()}\n")
    else:
        typer.echo(text.rstrip())
    raise typer.Exit(exit_code(found))


def _redacted(wanted: Format, root: Path, *, include_prompts: bool) -> str:
    """Rendered from redacted copies, in a folder that goes at once."""
    import tempfile

    from gptq_diff.report.redacted_run import write_redacted

    with tempfile.TemporaryDirectory(prefix="gptq-diff-redacted-") as place:
        shared = write_redacted(root, Path(place), include_prompts=include_prompts)
        return _text(wanted, Path(place), shared)


def _text(wanted: Format, root: Path, found: Report) -> str:
    from gptq_diff.report.json_report import to_json
    from gptq_diff.report.junit import junit
    from gptq_diff.report.renderings import RENDERINGS

    if wanted is Format.JSON:
        return to_json(found)
    if wanted is Format.JUNIT:
        return junit(found)
    return RENDERINGS[f"report.{wanted.value}"](found, root)
