"""`gptq-diff diagnose RUN`: say again why the bad layers of a finished capture are bad, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    model: o.MovedModel = None,
    reference_model: o.ReferenceModel = None,
    experiments: Annotated[
        bool,
        typer.Option(
            "--experiments",
            help="Start engines of failing live kernels once more, and run bad linears by themselves.",
        ),
    ] = False,
    backends: Annotated[
        str | None,
        typer.Option(
            "--backends",
            metavar="A,B@PYTHON",
            help="Backends to experiment on, sound ones and simulators too, with the interpreters that run them here.",
            show_default="failing ones of other engines than the transformers one",
        ),
    ] = None,
    device: o.Device = "",
    timeout: o.Timeout = 3600.0,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_skip: o.AllowSkip = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Say why the bad layers of a finished capture are bad: by what was captured alone, or with experiments as well."""
    wait_without_spinning()
    from gptq_diff.cli.output import console, saying
    from gptq_diff.cli.show import show_report
    from gptq_diff.exit_codes import exit_code
    from gptq_diff.session.again import compare_again
    from gptq_diff.session.live_again import Again

    say = saying(console(quiet=quiet or as_json))

    def heard(backend: str, event: dict[str, Any]) -> None:
        if event["event"] in {"failed", "further-failed"}:
            say(f"{backend}: {event['reason']}")

    live = None
    if experiments or backends is not None:
        mode = o.ExperimentsMode.AUTO if backends is None else o.ExperimentsMode.ALL
        live = Again(mode.value, backends, device, timeout, trust_remote_code)
    done = compare_again(
        run, model, reference_model, allow_skip=allow_skip, say=say, judging=False, live=live, listen=heard
    )
    show_report(run, done, as_json=as_json, quiet=quiet, verbose=verbose)
    raise typer.Exit(exit_code(done))
