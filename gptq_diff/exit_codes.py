"""A report's exit code (docs/run.md)."""

from __future__ import annotations

from gptq_diff.records import Report

NUMERIC_FAILURES = frozenset({"overflow", "nan", "diverged", "collapsed", "nondeterministic"})


def exit_code(report: Report) -> int:
    """0 all agree, 1 a numeric failure, 3 could not judge; a failure found beats a backend that could not run."""
    if any(r.status in NUMERIC_FAILURES for r in report.results):
        return 1
    judged = [r for r in report.results if r.quantization_error is None]  # the unquantised model is not judged
    if not judged or any(r.status == "incomplete" for r in report.results):
        return 3
    if report.skipped_backends and not report.allow_skip:
        return 3
    return 0
