"""`gptq-diff check`: the regression job."""

from __future__ import annotations

import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli import options as o


def check(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASES]...", help="Names, directories or case.toml files.", show_default="all shipped"),
    ] = None,
    backends: Annotated[
        str | None,
        typer.Option("--backends", metavar="A,B@PYTHON", help="Run these instead.", show_default="each case's own"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="CHECK", help="Directory.", show_default="gptq-diff-runs/check-UTC-TIME-ID"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished check in --out.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going/--no-keep-going", help="Go on after a case that does not hold.")
    ] = True,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cases at a time.")] = 1,
    device: o.Device = "",
    tensor_parallel_size: o.TensorParallelSize = 1,
    timeout: o.Timeout = 3600.0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Run cases and hold what happens against what they expect."""
    from gptq_diff.cases.check import CheckAsked
    from gptq_diff.cases.check import check as carry_out
    from gptq_diff.cases.check_dir import CheckDir
    from gptq_diff.cases.library import find_cases
    from gptq_diff.cli.output import console, print_json, saying
    from gptq_diff.report.check.console import show_check
    from gptq_diff.report.check.words import happened

    asked = CheckAsked(
        find_cases(cases or ()), backends, device, tensor_parallel_size, timeout, jobs=jobs, keep_going=keep_going
    )
    screen = console(quiet=quiet or as_json)
    say = saying(screen)
    place = CheckDir.claim(out or fresh_out(), overwrite=overwrite)
    try:
        report = carry_out(asked, place, lambda o: say(f"{o.name}: {o.state} ({o.seconds:.1f} s): {happened(o)}"))
        place.finish(report.to_json())
    finally:
        place.release()
    if as_json:
        print_json(report.to_json())
    else:
        show_check(screen, report)
        say(f"check: {place.root / 'check.json'}")
    raise typer.Exit(report.exit_code)


def fresh_out() -> Path:
    """gptq-diff-runs/check-UTC-TIME-ID below the current directory."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return Path("gptq-diff-runs") / f"check-{now}-{secrets.token_hex(2)}"
