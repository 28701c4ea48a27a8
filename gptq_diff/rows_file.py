"""judged/BACKEND/PROMPT.rows.json: figures of single rows, for pictures. Standard library only."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import asdict
from pathlib import Path

from gptq_diff.errors import CaptureError
from gptq_diff.records import RowMap
from gptq_diff.whole_file import write_whole


def rows_file(root: Path, backend: str, prompt: str) -> Path:
    """Where a run keeps them."""
    return root / "judged" / backend / f"{prompt}.rows.json"


def write_rows(path: Path, rows: RowMap) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(asdict(rows)) + "\n", parents=True)


def read_rows(path: Path) -> RowMap | None:
    """What is stored there, None when nothing is, CaptureError for a damaged file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        bins, lost = (tuple((a, b, c) for a, b, c in raw[name]) for name in ("bins", "lost"))
        found = RowMap(tuple(raw["layers"]), bins, raw["x"], raw["y"], raw["error"], lost)
        sizes = {len(b64decode(text, validate=True)) for text in (found.x, found.y, found.error)}
        if sizes != {2 * len(found.layers) * len(bins)}:
            raise ValueError("its maps are not as large as it says")
        return found
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "remove it, then `gptq-diff compare` with --model") from e
