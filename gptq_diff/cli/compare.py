"""`gptq-diff compare RUN`: judge a finished capture again, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="DIR", help="The checkpoint to judge with, if it has moved.", show_default="as recorded"
        ),
    ] = None,
    reference_model: o.ReferenceModel = None,
    allow_skip: o.AllowSkip = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Judge a finished capture again and report; without the checkpoint from the stored judgements."""
    wait_without_spinning()
    from gptq_diff.cli.output import console, saying
    from gptq_diff.cli.show import show_report
    from gptq_diff.exit_codes import exit_code
    from gptq_diff.session.again import compare_again

    say = saying(console(quiet=quiet or as_json))

    done = compare_again(run, model, reference_model, allow_skip=allow_skip, say=say)
    show_report(run, done, as_json=as_json, quiet=quiet, verbose=verbose)
    raise typer.Exit(exit_code(done))
