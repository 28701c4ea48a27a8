"""What stays of the tensors once they have been judged (`--capture`)."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.store import CaptureReader, save_tensors, write_json
from gptq_diff.capture.tap import layer_of

if TYPE_CHECKING:
    import torch


def size_of(capture: Path) -> int:
    """Bytes of tensors that one capture holds on disk."""
    return sum(f.stat().st_size for f in capture.glob("block-*.safetensors"))


def keep_only(capture: Path, layers: frozenset[str]) -> int:
    """Rewrite a capture so that it holds the tensors of those layers only; returns the bytes freed.

    The new block has a name of its own, the manifest points to it in one rename, and old blocks go last: after a
    crash at any point the capture is whole, as it was or as it shall be. The kept tensors are held in memory.
    """
    before = size_of(capture)
    reader = CaptureReader(capture)
    block = next(name for i in itertools.count() if not (capture / (name := f"block-kept-{i}.safetensors")).exists())
    tensors: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    for key, place in reader.manifest.where.items():
        step, _, rest = key.partition("/")
        layer, _, side = rest.rpartition("/")
        if layer_of(layer) not in layers:
            continue
        if place.startswith("=") and layer_of(place[1:].partition("/")[2].rpartition("/")[0]) in layers:
            where[key] = place  # an input shared with another layer that stays
        else:
            tensors[key] = reader.tensor(int(step), layer, side).clone()
            where[key] = block
    reader.close()
    if tensors:
        save_tensors(tensors, capture / block)
    write_json(capture / "manifest.json", asdict(replace(reader.manifest, where=where)))
    for file in capture.glob("block-*.safetensors"):
        if not tensors or file.name != block:
            file.unlink()
    return before - size_of(capture)
