"""Plants faults: damaged copies of a checkpoint, and kernels that go wrong at one layer.

Shares nothing with the code that judges: numpy, torch and safetensors only, nothing of gptq_diff is imported. A layer
is a dictionary of its packed arrays, "qweight", "qzeros", "scales", "g_idx", "bias".
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

FAULTS = ("zero-point", "nan-scale", "wrong-group", "swapped")


def read_tensors(model: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint of one file."""
    return load_file(str(model / "model.safetensors"))


def linears(tensors: dict[str, np.ndarray]) -> list[str]:
    """Names of the quantised linears in order of execution (Llama and Qwen2 blocks)."""
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [name[: -len(".qweight")] for name in tensors if name.endswith(".qweight")]
    return sorted(names, key=lambda n: (int(n.split(".")[2]), order.index(n.split(".")[-1])))


def layer(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}


def write_copy(model: Path, changed: dict[str, np.ndarray], out: Path) -> Path:
    """A copy of the checkpoint with these tensors replaced."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({**read_tensors(model), **changed}, str(out / "model.safetensors"), {"format": "pt"})
    return out


def shift_zero(packed, bits, rng, share=1.0):
    """The stored zero points of one group, each up or down by one; share: of the columns, one at least."""
    words = packed["qzeros"].view(np.uint32).copy()
    group, columns = rng.integers(words.shape[0]), packed["scales"].shape[1]
    mask = 2**bits - 1
    assert 32 % bits == 0, "3 bit zero points cross words"
    for column in rng.choice(columns, max(1, round(share * columns)), replace=False):
        word, shift = divmod(int(column) * bits, 32)
        old = int(words[group, word] >> shift) & mask
        new = old + (-1 if old == mask or (old > 0 and rng.integers(2)) else 1)
        words[group, word] = (int(words[group, word]) & ~(mask << shift) & 0xFFFFFFFF) | (new << shift)
    return {**packed, "qzeros": words.view(np.int32)}


def nan_scale(packed, _bits, rng):
    """One scale becomes NaN."""
    scales = packed["scales"].copy()
    scales[rng.integers(scales.shape[0]), rng.integers(scales.shape[1])] = np.nan
    return {**packed, "scales": scales}


def wrong_group(packed, _bits, rng):
    """Two groups exchange their scales."""
    scales = packed["scales"].copy()
    a, b = rng.choice(scales.shape[0], 2, replace=False)
    scales[[a, b]] = scales[[b, a]]
    return {**packed, "scales": scales}


def damage(tensors, fault, name, bits, rng):
    """(tensors to replace, the layer that must be found first); swapped takes two of q, k and v of that block."""
    if fault == "swapped":
        block = name.rsplit(".", 2)[0] + ".self_attn"
        shapes = {p: tensors[f"{block}.{p}_proj.qweight"].shape for p in "qkv"}
        pairs = [(a, b) for a, b in ("qk", "qv", "kv") if shapes[a] == shapes[b]]
        a, b = (f"{block}.{p}_proj" for p in pairs[rng.integers(len(pairs))])
        one, two = layer(tensors, a), layer(tensors, b)
        return {f"{a}.{k}": v for k, v in two.items()} | {f"{b}.{k}": v for k, v in one.items()}, a
    edit = {"zero-point": shift_zero, "nan-scale": nan_scale, "wrong-group": wrong_group}[fault]
    return {f"{name}.{k}": v for k, v in edit(layer(tensors, name), bits, rng).items()}, name


def gain_shift(tensors, block, group, group_size, gain):
    """down_proj's inputs of one group grow by a power of two; the exact answer of the model stays."""
    up, down = (f"model.layers.{block}.mlp.{p}_proj.scales" for p in ("up", "down"))
    scales_up, scales_down = tensors[up].copy(), tensors[down].copy()
    scales_up[:, group * group_size : (group + 1) * group_size] *= np.float16(gain)
    scales_down[group] /= np.float16(gain)
    return {up: scales_up, down: scales_down}


def unpack(packed, bits, zero_offset):
    """(code - zero [K, N], scales of every row [K, N]) in float32, bit by bit."""
    stream = np.unpackbits(packed["qweight"].T.copy().view(np.uint8), axis=1, bitorder="little")
    codes = stream.reshape(stream.shape[0], -1, bits) @ (1 << np.arange(bits))
    stream = np.unpackbits(packed["qzeros"].copy().view(np.uint8), axis=1, bitorder="little")
    zeros = stream.reshape(stream.shape[0], -1, bits) @ (1 << np.arange(bits)) + zero_offset
    scales = packed["scales"].astype(np.float32)
    rows = packed.get("g_idx")
    rows = np.arange(codes.shape[1]) * len(scales) // codes.shape[1] if rows is None else rows
    return (codes.T - zeros[rows]).astype(np.float32), scales[rows]


def overflowing_product(x_MK, packed, bits, zero_offset):
    """x W as a kernel that narrows too early: sums of unscaled products, rounded to half before the scale.

    x is first scaled so that the largest sum just overflows.
    """
    codes, scales = unpack(packed, bits, zero_offset)
    scale_N = scales.max(axis=0)
    sums = x_MK.astype(np.float64) @ (codes * (scales / scale_N)).astype(np.float64)
    shift = 2.0 ** np.ceil(np.log2(65520.0 / np.abs(sums).max()))
    with np.errstate(over="ignore"):
        narrow = (sums * shift).astype(np.float16).astype(np.float32)
        return (narrow * (scale_N / np.float32(shift))).astype(np.float16)


def format_of(model: Path) -> tuple[int, int]:
    """(bits, what is added to a stored zero point)."""
    settings = json.loads((model / "config.json").read_text())["quantization_config"]
    return settings["bits"], 1 if settings.get("checkpoint_format", "gptq") == "gptq" else 0


class FaultyKernel:
    """A kernel that at one layer multiplies by something else: the inner kernel's like in everything but that."""

    def __init__(self, inner, at, damaged=None, overflow=None):
        """damaged: packed arrays to use there instead; overflow: (bits, zero offset) of an early narrowing there."""
        self.inner, self.at, self.damaged, self.overflow = inner, at, damaged, overflow
        self.name, self.on_host, self.takes_half = inner.name, inner.on_host, inner.takes_half

    def supports(self, spec):
        return self.inner.supports(spec)

    def multiply(self, x_MK, linear):
        if linear.spec.name != self.at:
            return self.inner.multiply(x_MK, linear)
        if self.overflow is not None:
            packed = {k: getattr(linear, k).numpy() for k in ("qweight", "qzeros", "scales")}
            if linear.g_idx is not None:
                packed["g_idx"] = linear.g_idx.numpy()
            y_MN = torch.from_numpy(overflowing_product(x_MK.numpy(), packed, *self.overflow))
            return dataclasses.replace(self.inner.multiply(x_MK, linear), y_MN=y_MN)
        arrays = {k: torch.from_numpy(v) for k, v in self.damaged.items() if k in ("qweight", "qzeros", "scales")}
        if linear.g_idx is not None:
            arrays["g_idx"] = torch.from_numpy(self.damaged["g_idx"])
        return self.inner.multiply(x_MK, dataclasses.replace(linear, **arrays))


def massive_group(tensors, block, group_size):
    """The group of down_proj's inputs that up_proj writes most strongly to: the planted massive channel's."""
    scales = tensors[f"model.layers.{block}.mlp.up_proj.scales"].astype(np.float32)
    return int(scales.max(axis=0).argmax()) // group_size
