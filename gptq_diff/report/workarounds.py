"""What was tried where a backend fails, a line each."""

from __future__ import annotations

from gptq_diff.records import Report, Workaround
from gptq_diff.text import one_line

LINE = 260
"""Characters of one line; report.json has the rest."""


def workaround_lines(report: Report) -> list[str]:
    """What works first; once for prompts of a backend that say the same."""
    said: dict[tuple[Workaround, ...], list[str]] = {}
    for result in report.results:
        if result.workarounds:
            said.setdefault(result.workarounds, []).append(f"{result.backend}, {result.prompt}")
    lines = []
    for workarounds, who in said.items():
        lines.append(f"workarounds for {'; '.join(who)}:")
        ordered = sorted(workarounds, key=lambda w: (w.works is not True, w.works is None))
        lines += [one_line(f"  {_word(w)} {w.name}: {w.detail}", LINE) for w in ordered]
    return lines


def _word(workaround: Workaround) -> str:
    return {True: "works:", False: "no help:", None: "not tried:"}[workaround.works]
