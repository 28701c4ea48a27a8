"""The files that a run gets beside its report.json, each made from the report and what lies judged beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from gptq_diff.records import Report
from gptq_diff.report.advice import worst_result
from gptq_diff.report.judged import read_judged_of
from gptq_diff.report.markdown import markdown
from gptq_diff.whole_file import write_whole

Renderer = Callable[[Report, Path], str]
"""report, the directory of its run (or one with redacted copies of the same files) -> the whole file's text."""


def _markdown(report: Report, root: Path) -> str:
    worst = worst_result(report)  # whose neighbours alone are shown
    keys = [] if worst is None or worst.first_bad is None else [(worst.backend, worst.prompt)]
    return markdown(report, {key: read_judged_of(root, *key) for key in keys})


def _html(report: Report, root: Path) -> str:
    from gptq_diff.report.html import read_parts, render_html  # jinja2, which nothing else here needs

    return render_html(read_parts(root, report))


RENDERINGS: dict[str, Renderer] = {"report.md": _markdown, "report.html": _html}
"""By the file's name; `run`, `compare` and `diagnose` write them all, and a bundle renders them again."""


def write_renderings(report: Report, root: Path) -> None:
    """Write every file, each by rename."""
    for name, render in RENDERINGS.items():
        write_whole(root / name, render(report, root))
