"""Running the main job under somebody's eyes: shared by `run` and `demo`."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.cli.live import LiveWatcher
from gptq_diff.cli.output import console
from gptq_diff.cli.show import show_report
from gptq_diff.exit_codes import exit_code
from gptq_diff.records import Report
from gptq_diff.session.asked import Asked
from gptq_diff.session.loads import first_started


def watched(asked: Asked, out: Path, *, overwrite: bool, quiet: bool) -> tuple[RunDir, Report]:
    """Run the job with progress on stderr."""
    run = RunDir.create(out, overwrite=overwrite)
    try:
        with LiveWatcher(asked, console(quiet=quiet), quiet=quiet) as watcher, first_started(asked, run) as first:
            from gptq_diff.session.main_job import run_job  # it brings torch along

            return run, run_job(asked, run, watcher, first)
    finally:
        run.release()


def run_and_show(asked: Asked, out: Path, *, overwrite: bool, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Run the job, show the report, return the exit code."""
    run, report = watched(asked, out, overwrite=overwrite, quiet=quiet or as_json)
    show_report(run.root, report, as_json=as_json, quiet=quiet, verbose=verbose)
    return exit_code(report)
