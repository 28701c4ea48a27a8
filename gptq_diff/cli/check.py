"""`gptq-diff check`: the regression job."""

from __future__ import annotations

import re
import secrets
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.errors import UsageError

if TYPE_CHECKING:
    from gptq_diff.cases.baseline import Baseline
    from gptq_diff.cases.case import Case
    from gptq_diff.records import CaseOutcome, CheckReport

DAY = 86400
_SHARD = re.compile(r"(\d{1,4})/(\d{1,4})", re.ASCII)


def check(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CASES]...", help="Names, folders or case.toml files.", show_default="all that come with gptq-diff"
        ),
    ] = None,
    backends: Annotated[
        str | None,
        typer.Option("--backends", metavar="A,B@PYTHON", help="Run these instead.", show_default="each case's own"),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE.md", help="Append a Markdown summary for a job's page.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Earlier local errors to compare with.")
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write what was measured into --baseline, and compare nothing.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Run every N-th case from the I-th on.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going/--no-keep-going", help="Go on after a case that does not hold.")
    ] = True,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cases at a time.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="CHECK", help="Folder; an interrupted check goes on.", show_default="a new one"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in --out.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Which fault the self-test plants.", show_default="today")
    ] = None,
    device: o.Device = "",
    tensor_parallel_size: o.TensorParallelSize = 1,
    timeout: o.Timeout = 3600.0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Run cases, hold what happens against what they expect, and see whether this guard sees."""
    wait_without_spinning()
    from gptq_diff.cases.check import CheckAsked
    from gptq_diff.cases.check import check as carry_out
    from gptq_diff.cases.check_dir import CheckDir
    from gptq_diff.cases.library import find_cases
    from gptq_diff.cases.tasks import keep_apart
    from gptq_diff.cli.output import console, saying
    from gptq_diff.presets import parse_backends
    from gptq_diff.report.check.words import happened

    chosen = _sharded(find_cases(cases or ()), shard)
    if backends is not None:
        parse_backends(backends)
    known = _baseline(baseline, update=update_baseline)
    asked = CheckAsked(
        chosen, backends, device, tensor_parallel_size, timeout, int(time.time()) // DAY if seed is None else seed,
        jobs, keep_going, None if update_baseline else known, str(baseline) if baseline and not update_baseline else "",
    )  # fmt: skip
    say = saying(console(quiet=quiet or as_json))

    def told(name: str, outcome: CaseOutcome) -> None:
        say(f"{name}: {outcome.state} ({outcome.seconds:.1f} s): {happened(outcome)}")

    out = out or fresh_out()
    keep_apart(chosen, out)
    place = CheckDir.claim(out, overwrite=overwrite)
    try:
        report = carry_out(asked, place, told)
        place.finish(report.to_json())
    finally:
        place.release()
    if update_baseline and known is not None and baseline is not None:
        known.updated(report.cases).write(baseline)
    _write(report, junit, summary)
    _show(report, place.root, as_json=as_json, quiet=quiet)
    raise typer.Exit(report.exit_code)


def _sharded(cases: tuple[Case, ...], asked: str | None) -> tuple[Case, ...]:
    from gptq_diff.cases.check import shard

    if asked is None:
        return cases
    match = _SHARD.fullmatch(asked)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {asked} is not I/N with I from 1 to N", "for example --shard 1/3")
    return shard(cases, int(match[1]), int(match[2]))


def _baseline(file: Path | None, *, update: bool) -> Baseline | None:
    from gptq_diff.cases.baseline import Baseline, read_baseline

    if file is None:
        if update:
            raise UsageError("--update-baseline has no file to write to", "add --baseline FILE")
        return None
    return Baseline({}) if update and not file.exists() else read_baseline(file)


def _write(report: CheckReport, junit: Path | None, summary: Path | None) -> None:
    """The files for CI systems; a summary is appended, since a job's page may have one already."""
    from gptq_diff.report.check.junit import check_junit
    from gptq_diff.report.check.markdown import check_markdown

    for file in (junit, summary):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if junit is not None:
        junit.write_text(check_junit(report), encoding="utf-8")
    if summary is not None:
        with summary.open("a", encoding="utf-8") as page:
            page.write(check_markdown(report))


def _show(report: CheckReport, root: Path, *, as_json: bool, quiet: bool) -> None:
    from gptq_diff.cli.output import console, print_json, saying
    from gptq_diff.report.check.console import show_check

    if as_json:
        print_json(report.to_json())
        return
    screen = console(quiet=quiet)
    show_check(screen, report)
    saying(screen)(f"check: {root / 'check.json'}")


def fresh_out() -> Path:
    """gptq-diff-runs/check-UTC-TIME-ID below the current directory."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return Path("gptq-diff-runs") / f"check-{now}-{secrets.token_hex(2)}"
