"""The program: its commands, what is common to them, and the one place where an error becomes a sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff import __version__
from gptq_diff.cli import cases, ci, env, kernels, model
from gptq_diff.cli.backends import backends
from gptq_diff.cli.bisect import bisect
from gptq_diff.cli.bundle import bundle
from gptq_diff.cli.check import check
from gptq_diff.cli.compare import compare
from gptq_diff.cli.demo import demo
from gptq_diff.cli.diagnose import diagnose
from gptq_diff.cli.errors import flush_stdout, settle
from gptq_diff.cli.probe_server import probe_server
from gptq_diff.cli.reduce import reduce
from gptq_diff.cli.report import report
from gptq_diff.cli.run import run
from gptq_diff.cli.settings import settings_of, user_config
from gptq_diff.cli.stress import stress
from gptq_diff.cli.view import view
from gptq_diff.config_file import load

# Plain help: importing Rich would double the time that --help takes, and its boxes are noise in a CI log.
app = typer.Typer(
    name="gptq-diff",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run,
    demo,
    backends,
    compare,
    diagnose,
    reduce,
    report,
    bundle,
    stress,
    check,
    probe_server,
    view,
    bisect,
):
    app.command()(command)
app.add_typer(model.app, name="model")
app.add_typer(env.app, name="env")
app.add_typer(cases.app, name="cases")
app.add_typer(kernels.app, name="kernels")
app.add_typer(ci.app, name="ci")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gptq-diff {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find the first layer at which a GPTQ model breaks in one inference engine and not in another."""
    ctx.default_map = dict(load(Path(), user_config(os.environ), settings_of(app)))


def main() -> None:
    """Run the program and exit with a code of contract.md."""
    try:
        try:
            app(prog_name="gptq-diff")
        finally:
            flush_stdout()
    except BaseException as error:  # the program's border: SystemExit and KeyboardInterrupt too
        code = settle(error)
    else:
        code = 0
    sys.exit(code)
