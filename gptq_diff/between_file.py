"""judged/BACKEND/PROMPT.between.json: the intervals between the linears of one capture. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from gptq_diff.errors import CaptureError
from gptq_diff.records import Between, Finding, Judgement
from gptq_diff.whole_file import write_whole


def between_file(root: Path, backend: str, prompt: str) -> Path:
    """Where a run keeps them."""
    return root / "judged" / backend / f"{prompt}.between.json"


def write_between(path: Path, between: Between) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(asdict(between)) + "\n", parents=True)


def read_between(path: Path) -> Between | None:
    """What is stored there, None when nothing is, CaptureError for a damaged file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Between(
            tuple(Judgement.from_json(j) for j in raw["judgements"]),
            tuple(Finding.from_json(f) for f in raw["findings"]),
            dict(raw["skipped"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "remove it, then `gptq-diff compare` with --model") from e
