"""The first blocks of a model as a checkpoint of its own, by links to the same files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gptq_diff.checkpoint.reader import open_checkpoint

_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


def first_blocks(model: Path, blocks: int, directory: Path) -> Path:
    """Write config and index for that many blocks; shards and all else are links."""
    directory.mkdir(parents=True)
    for file in model.iterdir():
        if file.name not in {"config.json", "model.safetensors.index.json"}:
            (directory / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = blocks
    if "max_window_layers" in config:
        config["max_window_layers"] = blocks
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    with open_checkpoint(model) as checkpoint:
        shards = {name: checkpoint.entry(name).file.name for name in checkpoint.tensor_names() if _kept(name, blocks)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    return directory


def _kept(name: str, blocks: int) -> bool:
    found = _BLOCK.match(name)
    return found is None or int(found[1]) < blocks
