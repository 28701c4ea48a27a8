"""The stored judgements of every result of a report."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.between_file import between_file, read_between
from gptq_diff.judged_file import read_judged
from gptq_diff.records import Judgement, Report


def read_all_judged(root: Path, report: Report) -> dict[tuple[str, str], list[Judgement]]:
    """The judgements by (backend, prompt), bad intervals before the linears that they lead to; no bias that is right.

    An empty list where none are stored.
    """
    return {(r.backend, r.prompt): read_judged_of(root, r.backend, r.prompt) for r in report.results}


def read_judged_of(root: Path, backend: str, prompt: str) -> list[Judgement]:
    """The same of one capture."""
    between = read_between(between_file(root, backend, prompt))
    bad = [j for j in between.judgements if j.cause is not None] if between is not None else []
    linears = [
        j for j in read_judged(root / "judged" / backend / f"{prompt}.jsonl") if j.part != "bias" or j.cause is not None
    ]
    return sorted([*bad, *linears], key=lambda j: (j.step, j.index))
