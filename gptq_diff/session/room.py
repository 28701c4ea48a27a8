"""How much disk a run needs until its tensors are judged and dropped: asked before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.errors import UsageError
from gptq_diff.records import LayerSpec

if TYPE_CHECKING:
    from gptq_diff.session.asked import Asked

SHARING = frozenset({"k_proj", "v_proj", "up_proj"})
"""Linears whose input is stored with that of q_proj or gate_proj."""


def capture_bytes(asked: Asked, layers: Sequence[LayerSpec]) -> int:
    """Bytes of all inputs and outputs that the run will store, every prompt decoded to its end: rows times widths.

    `auto` and `stats` drop tensors once all are judged; until then they are all there.
    """
    widths = sum(s.out_features + _input(s) for s in layers)
    rows = sum(p.tokens + asked.max_new_tokens - 1 for p in asked.prompts) * asked.repeats
    return sum(rows * widths * (4 if b.dtype == "float32" else 2) for b in asked.backends)


def check_room(asked: Asked, layers: Sequence[LayerSpec], out: Path) -> None:
    """UsageError where the disk of the run directory has not the room; a disk that does not say is left alone."""
    try:
        free = shutil.disk_usage(out).free
    except OSError:
        return
    needed = capture_bytes(asked, layers)
    if needed > free:
        raise UsageError(
            f"this run stores {_gb(needed)} of tensors until they are judged, and {out} has {_gb(free)} free: "
            f"{len(asked.prompts)} prompts, {len(asked.backends)} backends, {asked.max_new_tokens} new tokens",
            "give it fewer or shorter prompts at a time, fewer backends, or another --out",
        )


def _input(spec: LayerSpec) -> int:
    return 0 if spec.name.rpartition(".")[2] in SHARING else spec.in_features


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
