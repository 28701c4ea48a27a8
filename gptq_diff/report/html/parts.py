"""What the page is made of, read from a finished run: the report, and of some captures the stored judgements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptq_diff.errors import CaptureError
from gptq_diff.records import Judgement, Report, Result, RowMap
from gptq_diff.report.advice import worst_result
from gptq_diff.report.judged import read_judged_of
from gptq_diff.report.sweeps import at_the_changes
from gptq_diff.rows_file import read_rows, rows_file

Key = tuple[str, str]
"""(backend, prompt)."""
MOST_PICTURED = 40
"""Captures whose judgements are in the page; with 200 prompts all of them would take minutes to read."""


@dataclass(frozen=True)
class PromptText:
    """What was asked: the ids that every backend got, and the text they stand for (None for bare ids)."""

    token_ids: tuple[int, ...]
    text: str | None


@dataclass(frozen=True)
class Parts:
    """All that the page shows.

    judged: judgements of the captures that are pictured, of one step at least (shown_step), in order of execution;
    empty where none are stored.
    prompts: by id; empty where they are not to be shown. rows: figures of single rows, where there are any.
    """

    report: Report
    judged: Mapping[Key, list[Judgement]]
    prompts: Mapping[str, PromptText] = field(default_factory=dict)
    rows: Mapping[Key, RowMap] = field(default_factory=dict)


def read_parts(root: Path, report: Report) -> Parts:
    """What lies beside a report; CaptureError for a damaged file. What is missing is left out, and the page says so."""
    results = {(r.backend, r.prompt): r for r in pictured(report)}
    keys = list(results)
    judged = {key: [j for j in read_judged_of(root, *key) if j.step == shown_step(results[key])] for key in keys}
    rows = {key: found for key in keys if (found := read_rows(rows_file(root, *key))) is not None}
    return Parts(report, judged, _read_prompts(root / "prompts.json"), rows)


def pictured(report: Report) -> list[Result]:
    """At most MOST_PICTURED results, the most telling first: the worst, failing ones, others with the same prompts.

    The reference comes after the backends, but first of what agrees where something fails. Of a sweep only the lengths
    at which something changes.
    """
    worst = worst_result(report)
    failing = {r.prompt for r in report.results if r.status != "agree"}

    def rank(result: Result) -> int:
        if result is worst:
            return 0
        if result.status != "agree":
            return 1 if result.first_bad is not None else 2
        if result.prompt in failing:
            return 3 if result.backend == report.reference else 4
        return 6 if result.backend == report.reference else 5

    return sorted(at_the_changes(report).results, key=rank)[:MOST_PICTURED]


def shown_step(result: Result) -> int:
    """The step that is pictured: the one at which it broke, else the prefill."""
    return result.first_bad.step if result.first_bad is not None else 0


def _read_prompts(path: Path) -> dict[str, PromptText]:
    """Empty where the file is missing: a report alone is shown without."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {r["id"]: PromptText(tuple(r["token_ids"]), r["text"]) for r in rows}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "run the capture again") from e
