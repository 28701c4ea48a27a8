"""The stored judgements of every result of a report."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.judged_file import read_judged
from gptq_diff.records import Judgement, Report


def read_all_judged(root: Path, report: Report) -> dict[tuple[str, str], list[Judgement]]:
    """The judgements by (backend, prompt); an empty list where none are stored."""
    return {
        (r.backend, r.prompt): read_judged(root / "judged" / r.backend / f"{r.prompt}.jsonl") for r in report.results
    }
