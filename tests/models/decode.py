"""An independent reading of GPTQ checkpoints: bits as Python integers, one weight at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open


def load(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint, read with the safetensors package."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  not a dict
    return tensors


def config(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def stream(words: list[int], bits: int) -> list[int]:
    """The codes in a run of int32 words, through one big integer."""
    whole = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return [(whole >> (bits * i)) & (2**bits - 1) for i in range(32 * len(words) // bits)]


def decode(tensors: dict[str, torch.Tensor], name: str, bits: int, v1: bool = True) -> np.ndarray:
    """W[K, N] in float64."""
    qweight, qzeros = tensors[f"{name}.qweight"].tolist(), tensors[f"{name}.qzeros"].tolist()
    scales, g_idx = tensors[f"{name}.scales"].double().numpy(), tensors[f"{name}.g_idx"].numpy()
    codes = np.array([stream(list(column), bits) for column in zip(*qweight)]).T
    zeros = np.array([stream(row, bits) for row in qzeros]) + (1 if v1 else 0)
    return (codes - zeros[g_idx]) * scales[g_idx]


def linears(tensors: dict[str, torch.Tensor]) -> list[str]:
    return sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))


def as_transformers(directory: Path, dtype: torch.dtype = torch.float32):
    """The model in transformers, with dense weights decoded here."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(directory)
    bits, v1 = settings.quantization_config["bits"], settings.quantization_config["checkpoint_format"] == "gptq"
    del settings.quantization_config
    tensors = load(directory)
    packed = linears(tensors)
    dense = {f"{name}.weight": torch.from_numpy(decode(tensors, name, bits, v1)).T for name in packed}
    parts = ("qweight", "qzeros", "scales", "g_idx")
    dense.update({name: tensor for name, tensor in tensors.items() if not name.endswith(parts)})
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    missing, unexpected = model.load_state_dict({name: value.to(dtype) for name, value in dense.items()}, strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"])
    return model.eval()
