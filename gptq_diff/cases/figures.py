"""What a baseline keeps of a run: the local error of every linear, and what explains it."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.judged_file import read_judged
from gptq_diff.records import Figures, Judgement, LinearError, Report, Result

DECODING = " (decode)"
"""Behind a linear's name: its calls of single rows, whose few elements spread more than a prefill's."""
SIZED = frozenset({"ok", "diverged"})
"""Kinds of which the local error has a size."""


def figures_of(root: Path, report: Report) -> tuple[Figures, ...]:
    """Of every backend and prompt of the run at `root`, in the report's order."""
    return tuple(_figures(root, result) for result in report.results if result.quantization_error is None)


def _figures(root: Path, result: Result) -> Figures:
    worst: dict[str, LinearError] = {}
    for judgement in read_judged(root / "judged" / result.backend / f"{result.prompt}.jsonl"):
        name = judgement.stored if judgement.step == 0 else f"{judgement.stored}{DECODING}"
        one, known = _error(judgement), worst.get(name)
        if one is not None and (known is None or one.ratio > known.ratio):
            worst[name] = one
    return Figures(result.backend, result.prompt, result.status, result.kernel, result.versions, worst)


def _error(judgement: Judgement) -> LinearError | None:
    error, floor = judgement.local_l2_rel, judgement.noise_floor
    if judgement.kind not in SIZED or error is None or not floor:
        return None
    return LinearError(error, floor, 1.0 if judgement.error_share is None else judgement.error_share)
