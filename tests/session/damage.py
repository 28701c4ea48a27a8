"""A checkpoint with planted damage, made from its bytes by code that shares nothing with the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DAMAGED_LAYER = "model.layers.1.self_attn.o_proj"


def damaged_copy(model: Path, to: Path, *, nan_scale: bool = False) -> Path:
    """A copy whose DAMAGED_LAYER has every stored zero one lower, or one NaN among its scales."""
    shutil.copytree(model, to)
    for file in to.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{DAMAGED_LAYER}.qzeros" in tensors:
            if nan_scale:
                tensors[f"{DAMAGED_LAYER}.scales"][0, 3] = float("nan")
            else:
                tensors[f"{DAMAGED_LAYER}.qzeros"] -= torch.tensor(0x11111111, dtype=torch.int32)
            save_file(tensors, file)
    return to


def edit_config(model: Path, **changes: object) -> None:
    """Change keys of config.json."""
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
