"""RUN/diagnosed/BACKEND/PROMPT.headroom.json, and what a report says of it.

It holds for each linear (LAYER@RANK under tensor parallelism) the sums that its kernel holds in float16; the
reference's has those of every kernel, since one asks of a prompt which kernel it breaks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import write_json
from gptq_diff.compare.judge_run import Key
from gptq_diff.errors import CaptureError
from gptq_diff.records import Headroom, Result


def headroom_file(run: RunDir, key: Key) -> Path:
    """Where the headroom of one capture lies."""
    return run.root / "diagnosed" / key[0] / f"{key[1]}.headroom.json"


def write_headroom(path: Path, layers: dict[str, list[Headroom]]) -> None:
    """Write whole or not at all; nothing where nothing was measured."""
    if layers:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: [asdict(row) for row in rows] for name, rows in layers.items()})


def read_headroom(path: Path) -> dict[str, list[Headroom]]:
    """By linear as stored; empty when it was never measured, CaptureError for a damaged file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {name: [Headroom(**row) for row in rows] for name, rows in raw.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "remove it, then `gptq-diff compare` with --model") from e


def noted(result: Result, layers: dict[str, list[Headroom]]) -> Result:
    """The result with `headroom_bits`: of each linear the smallest, over its steps, ranks and kernel's sums.

    The reference sums in float32 or better: of it the result counts, as float16 would hold it.
    """
    bits: dict[str, float] = {}
    for stored, rows in layers.items():
        counted = [row.bits for row in rows if row.ran or row.arithmetic == "result"]
        if counted:
            layer = stored.partition("@")[0]
            bits[layer] = min([*counted, bits.get(layer, counted[0])])
    return replace(result, headroom_bits=bits)


def nearest_of_all(measured: Sequence[dict[str, list[Headroom]]]) -> tuple[Headroom, ...]:
    """For every backend and arithmetic the smallest headroom over all prompts, in the order given."""
    best: dict[tuple[str, str], Headroom] = {}
    for layers in measured:
        for row in (row for rows in layers.values() for row in rows):
            known = best.get((row.backend, row.arithmetic))
            if known is None or row.bits < known.bits:
                best[row.backend, row.arithmetic] = row
    return tuple(best.values())
