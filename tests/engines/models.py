"""Variants of the tiny model, and the plain transformers model with the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def edited(
    model: Path,
    directory: Path,
    change: Callable[[Tensors], object] = lambda tensors: None,
    **config: object,
) -> Path:
    """A copy with tensors changed in place by `change` and entries of config.json replaced."""
    shutil.copytree(model, directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return directory


def tied(model: Path, directory: Path) -> Path:
    """The same model with the embedding as its lm_head."""
    return edited(model, directory, lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True)


def unpacked(tensors: Tensors, name: str, group_size: int = 64) -> torch.Tensor:
    """float32 [N, K] of a 4-bit v1 linear, code by code: shares nothing with the package's dequantisation."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    words = tensors[f"{name}.qweight"]
    codes = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1])
    zeros = ((tensors[f"{name}.qzeros"][:, :, None] >> shifts) & 15).reshape(tensors[f"{name}.qzeros"].shape[0], -1) + 1
    group = torch.arange(codes.shape[0]) // group_size
    return ((codes - zeros[group]).float() * tensors[f"{name}.scales"].float()[group]).t().contiguous()


def plain_model(directory: Path) -> Any:
    """transformers' own model in float32 with the dequantised weights in it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_file(directory / "model.safetensors")
    state = {}
    for name in model.state_dict():
        owner = name.rpartition(".")[0]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            state[name] = tensors["model.embed_tokens.weight"].float()
        elif name.endswith(".weight") and f"{owner}.qweight" in tensors:
            state[name] = unpacked(tensors, owner)
        else:
            state[name] = tensors[name].float()
    model.load_state_dict(state)
    return model
