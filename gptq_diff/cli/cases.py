"""`gptq-diff cases ...`: the library of cases, and new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli.options import AsJson

app = typer.Typer(no_args_is_help=True, help="List, show and write cases for `check`.", rich_markup_mode=None)


@app.command("list")
def show_all(as_json: AsJson = False) -> None:
    """Show the cases that come with gptq-diff."""
    from gptq_diff.cases.library import find_cases
    from gptq_diff.cli.output import console, print_json

    found = find_cases(())
    if as_json:
        listed = [
            {
                "name": case.name, "description": case.description, "file": str(case.file),
                "model": case.model.build or case.model.path, "backends": list(case.backends),
                "prompts": [p.id for p in case.prompts], "expectations": len(case.expect),
            }
            for case in found
        ]  # fmt: skip
        print_json({"schema_version": 1, "cases": listed})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("case", "backends", "what it is", box=None, pad_edge=False)
    for case in found:
        table.add_row(Text(case.name, no_wrap=True), Text(", ".join(case.backends)), Text(case.description))
    console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="CASE", help="A name, a directory or a case.toml.")]) -> None:
    """Show what a case runs and expects."""
    from rich.text import Text

    from gptq_diff.cases.library import find_case
    from gptq_diff.cli.output import console
    from gptq_diff.text import clean

    case = find_case(name)
    screen = console()
    screen.print(Text(clean(case.file.read_text(encoding="utf-8-sig"))), soft_wrap=True)
    screen.print(Text(f"# {case.file}"), soft_wrap=True)


@app.command()
def new(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call it.", show_default="the run's folder name"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Its folder.", show_default="NAME, here")
    ] = None,
) -> None:
    """Write a case that expects what happened in RUN."""
    from rich.text import Text

    from gptq_diff.cases.new import new_case
    from gptq_diff.cli.output import console

    called = name or run.absolute().name
    file = new_case(run, called, out or Path(called))
    console().print(Text(f"wrote {file}; check it with: gptq-diff check {file.parent}"), soft_wrap=True)
