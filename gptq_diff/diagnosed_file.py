"""diagnosed/BACKEND/PROMPT.findings.json: what the diagnosis says of one capture. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gptq_diff.errors import CaptureError
from gptq_diff.records import Finding
from gptq_diff.whole_file import write_whole


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps([asdict(f) for f in findings], indent=1) + "\n", parents=True)


def read_findings(path: Path) -> tuple[Finding, ...] | None:
    """The findings, None when that capture was never diagnosed, CaptureError for a damaged file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Finding.from_json(row) for row in rows)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "run `gptq-diff diagnose` with --model") from e
