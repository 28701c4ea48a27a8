"""judged/BACKEND/PROMPT.jsonl: one judgement a line. Standard library only, so that a report can read it anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from gptq_diff.errors import CaptureError
from gptq_diff.records import Judgement
from gptq_diff.whole_file import write_whole


def write_judged(path: Path, judgements: Iterable[Judgement]) -> None:
    """Write whole or not at all."""
    write_whole(path, (json.dumps(asdict(judgement)) + "\n" for judgement in judgements), parents=True)


def read_judged(path: Path) -> list[Judgement]:
    """The judgements in order; an empty list when that capture was never judged, CaptureError for a damaged file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except ValueError as e:
        raise CaptureError(f"{path} is damaged: {e}", "run `gptq-diff compare` with --model") from e
    return [_judgement(path, number, line) for number, line in enumerate(lines, 1)]


def _judgement(path: Path, number: int, line: str) -> Judgement:
    try:
        return Judgement.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise CaptureError(f"{path}, line {number}, is damaged: {e}", "remove it, then `gptq-diff compare`") from e
