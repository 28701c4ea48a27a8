"""The shifted checkpoint as a directory: every file copied, the bytes of the changed tensors alone replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import torch

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.models.place import appearing

FIX_KEY = "gptq_diff_fix"
"""Where config.json says what was shifted."""


def write_fixed(
    checkpoint: Checkpoint, changed: Mapping[str, torch.Tensor], record: dict[str, object], out: Path,
    check: Callable[[Checkpoint], None],
) -> None:  # fmt: skip
    """Write the directory `out`, whole or not at all; UsageError where something else is there already.

    Shards, tokenizer and every other file keep their names and bytes; config.json gets `record`. check: is given what
    was written before it appears under its name, and raises where it is not what it must be.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", "give another --out")
    if out.resolve().is_relative_to(checkpoint.path.resolve()):
        raise UsageError(f"{out} lies inside the checkpoint", "give another --out")
    _room_for(checkpoint.path, out)
    with appearing(out) as directory:
        for file in sorted(checkpoint.path.iterdir()):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)
        for name, tensor in changed.items():
            _replace(checkpoint, name, tensor, directory)
        config = directory / "config.json"
        raw = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**raw, FIX_KEY: record}, indent=2) + "\n", encoding="utf-8")
        with open_checkpoint(directory) as written:
            check(written)


def _replace(checkpoint: Checkpoint, name: str, tensor: torch.Tensor, directory: Path) -> None:
    """Overwrite one tensor's bytes; its dtype and shape, and so the header, stay."""
    entry = checkpoint.entry(name)
    data = tensor.contiguous().view(torch.uint8).flatten().numpy().tobytes()
    if len(data) != entry.end - entry.start:
        raise AssertionError(f"{name}: {len(data)} bytes for {entry.end - entry.start}")
    with (directory / entry.file.name).open("r+b") as file:
        file.seek(entry.start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _room_for(source: Path, out: Path) -> None:
    needed = sum(file.stat().st_size for file in source.iterdir() if file.is_file())
    parent = next(place for place in out.absolute().parents if place.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UsageError(
            f"the checkpoint needs {needed / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB free",
            "free some space, or give another --out",
        )
