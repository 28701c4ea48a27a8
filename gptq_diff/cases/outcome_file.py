"""outcome.json of a case: written whole, read back where it can be."""

from __future__ import annotations

import json
from pathlib import Path

from gptq_diff.records import CaseOutcome
from gptq_diff.whole_file import write_whole

FILE = "outcome.json"


def write_outcome(outcome: CaseOutcome, place: Path) -> None:
    """Whole or not at all, so that a case without one has not finished."""
    write_whole(place / FILE, json.dumps(outcome.to_json(), indent=1))


def read_outcome(place: Path) -> CaseOutcome | None:
    """None where there is none, or one that is damaged or of another version: the case is run again then."""
    try:
        return CaseOutcome.from_json(json.loads((place / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
