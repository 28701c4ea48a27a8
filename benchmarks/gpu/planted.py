"""Models with a planted defect of one kernel, small enough to be built where they are run.

Random Qwen2 models of four blocks whose shapes every kernel takes: 512 hidden, 1024 in the MLP, 8 heads, 4 kv heads.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptq_diff.checkpoint.packing import pack_rows, unpack_rows

SHAPE = ("--hidden", "512", "--intermediate", "1024", "--blocks", "4", "--heads", "8", "--kv-heads", "4")
BLOCK = 1
GROUP_SIZE = 128
MASSIVE = 682
"""The channel of down_proj's input that is about 3000 on the first token (gptq_diff.models.massive)."""
IDS = [{"id": f"rows{n}", "token_ids": [(7 * i + 3) % 250 for i in range(n)]} for n in (1, 37, 80)]


def build(out: Path, *options: str) -> Path:
    """`gptq-diff model build tiny-qwen2` with the shape above."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "gptq_diff", "model", "build", "tiny-qwen2", *SHAPE, *options, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def fast_path_overflow(out: Path) -> Path:
    """The massive activation becomes 25,000: times a code of 7 it passes 65,504 in the fast path's accumulators."""
    return build(out, "--group-size", "128", "--gain-shift", f"{BLOCK}:{MASSIVE // GROUP_SIZE}:8")


def channelwise_overflow(out: Path) -> Path:
    """One group a column, activations eight times as large: Marlin narrows the unscaled sum to float16."""
    return build(out, "--group-size", "-1", "--gain-shift", f"{BLOCK}:0:8")


def cancelling_pair(out: Path) -> Path:
    """Two equal activations of 25,000 with weights 3.5 and -3.5: products of +-87,500 that cancel.

    The second one's columns of gate_proj and up_proj are copies of the first's. A sum kept in float16 overflows on
    the way wherever the two do not meet in one step of it; the exact answer is small.
    """
    sound = build(out.with_name(out.name + "-sound"), "--group-size", str(GROUP_SIZE))
    tensors = load_file(sound / "model.safetensors")
    twin, group = MASSIVE + 80, MASSIVE // GROUP_SIZE  # another 16 rows of K, the same group
    mlp = f"model.layers.{BLOCK}.mlp"
    for name in ("gate_proj", "up_proj"):
        for what in ("qweight", "scales", "bias"):
            key = f"{mlp}.{name}.{what}"
            if key in tensors:
                tensors[key][..., twin] = tensors[key][..., MASSIVE]
    for channel in (MASSIVE, twin):
        tensors[f"{mlp}.up_proj.scales"][:, channel] *= 8
    columns = slice(200, 208)
    codes_KN = unpack_rows(tensors[f"{mlp}.down_proj.qweight"], 4, 1024)
    codes_KN[MASSIVE, :], codes_KN[twin, :] = 8, 8  # nothing else reads them
    codes_KN[MASSIVE, columns], codes_KN[twin, columns] = 15, 1
    tensors[f"{mlp}.down_proj.qweight"] = pack_rows(codes_KN.to(torch.int32), 4)
    tensors[f"{mlp}.down_proj.scales"][group, columns] = 0.5
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(sound, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
