"""Small GPTQ checkpoints for tests, built from numbers, with packing that shares nothing with the code under test."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file


def pack_stream(codes: list[int], bits: int) -> list[int]:
    """Signed 32-bit words of a little-endian bit stream, written one bit at a time."""
    words = [0] * (len(codes) * bits // 32)
    position = 0
    for code in codes:
        for bit in range(bits):
            words[position // 32] |= ((code >> bit) & 1) << (position % 32)
            position += 1
    return [word - 2**32 if word >= 2**31 else word for word in words]


def pack_columns(codes_KN: list[list[int]], bits: int) -> torch.Tensor:
    """Pack qweight: every column of the K x N codes is a bit stream."""
    columns = [pack_stream(list(column), bits) for column in zip(*codes_KN)]
    return torch.tensor(columns, dtype=torch.int32).T.contiguous()


def pack_lines(stored_GN: list[list[int]], bits: int) -> torch.Tensor:
    """Pack qzeros: every row of the G x N stored zeros is a bit stream."""
    return torch.tensor([pack_stream(row, bits) for row in stored_GN], dtype=torch.int32)


def linear_tensors(
    name: str, k: int, n: int, bits: int = 4, group_size: int = 32, *, seed: int = 0, sym: bool = True,
    g_idx: list[int] | None = None, bias: bool = False, v2: bool = False, dtype: torch.dtype = torch.float16,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The tensors of one random linear; g_idx is stored in order when not given, as AutoGPTQ does."""
    rng = random.Random(seed)
    group_size = k if group_size == -1 else group_size
    groups = -(-k // group_size)
    codes = [[rng.randrange(2**bits) for _ in range(n)] for _ in range(k)]
    middle = 2 ** (bits - 1) - (0 if v2 else 1)
    stored = [[middle if sym else rng.randrange(2**bits - 1) for _ in range(n)] for _ in range(groups)]
    scales = [[rng.uniform(0.001, 0.1) for _ in range(n)] for _ in range(groups)]
    tensors = {
        f"{name}.qweight": pack_columns(codes, bits),
        f"{name}.qzeros": pack_lines(stored, bits),
        f"{name}.scales": torch.tensor(scales).to(dtype),
        f"{name}.g_idx": torch.tensor(g_idx or [row // group_size for row in range(k)], dtype=torch.int32),
    }
    if bias:
        tensors[f"{name}.bias"] = torch.tensor([rng.uniform(-1, 1) for _ in range(n)]).to(dtype)
    return tensors


def quant_config(**changes: object) -> dict[str, object]:
    """A quantization_config of 4 bits, group size 32, symmetric; a value of ... removes the key."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, **changes}
    return {key: value for key, value in config.items() if value is not ...}


def write_checkpoint(
    directory: Path, tensors: dict[str, torch.Tensor], quantisation: dict[str, object] | None = None, shards: int = 1
) -> Path:
    """Write config.json and the tensors, in one file or in `shards` with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {"architectures": ["TinyForCausalLM"], "model_type": "tiny"}
    config["quantization_config"] = quant_config() if quantisation is None else quantisation
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def tiny(directory: Path, *, shards: int = 1, **changes: object) -> Path:
    """Two blocks of two linears each and a plain norm; `changes` go into the quantization_config."""
    tensors = {}
    for block in range(2):
        tensors.update(linear_tensors(f"model.layers.{block}.self_attn.q_proj", 64, 32, seed=block, bias=True))
        tensors.update(linear_tensors(f"model.layers.{block}.mlp.down_proj", 96, 64, seed=10 + block))
        tensors[f"model.layers.{block}.norm.weight"] = torch.ones(64, dtype=torch.float16)
    return write_checkpoint(directory, tensors, quant_config(**changes), shards)
