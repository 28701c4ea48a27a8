"""Experiments on the live kernels, a line each; on one prompt of a backend in full, on its others in a word."""

from __future__ import annotations

from gptq_diff.records import Experiment, Report, Result
from gptq_diff.text import one_line

LINE = 240
"""Characters of one experiment; report.json has the rest."""


def experiment_lines(report: Report) -> list[str]:
    """Headed by backend, prompt and linear."""
    lines: list[str] = []
    shown: set[str] = set()
    for result in (r for r in report.results if r.experiments):
        if result.backend in shown:
            lines.append(f"  prompt {result.prompt}: {_in_a_word(result)}")
            continue
        shown.add(result.backend)
        lines.append(_head(result))
        lines += [f"  {one_line(_line(e), LINE)}" for e in result.experiments]
    return lines


def _head(result: Result) -> str:
    first = result.experiments[0]
    step = "" if first.step == 0 else f", decode step {first.step}"
    return f"experiments on {result.backend}, prompt {result.prompt}{step}, {first.layer}:"


def _line(e: Experiment) -> str:
    """What it says; where a cause follows, which: the findings have the rest."""
    if e.finding is not None:
        return f"{e.name}: {e.finding.cause}: {'; '.join(e.evidence[:1])}"
    return f"{e.name}: {'; '.join(e.evidence)}"


def _in_a_word(result: Result) -> str:
    first = result.experiments[0]
    causes = dict.fromkeys(e.finding.cause for e in result.experiments if e.finding is not None)
    said = f"they say {', '.join(causes)}" if causes else "they say nothing of a cause"
    return f"{len(result.experiments)} more on {first.layer}; {said}"
