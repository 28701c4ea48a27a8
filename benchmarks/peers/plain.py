"""SmolLM2 as a checkpoint of plain float32 linears, which every tool can load: the demo's weights, dequantised."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.reader import open_checkpoint


def write_plain(model: Path, directory: Path) -> None:
    """Config without its quantisation, and all weights."""
    directory.mkdir(parents=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")
    config["dtype"] = config["torch_dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open_checkpoint(model) as checkpoint:
        quantised = {spec.name for spec in checkpoint.layers}
        tensors = {f"{name}.weight": dequantise(checkpoint.packed(name)).T.contiguous() for name in quantised}
        for name in checkpoint.tensor_names():
            owner = name.rpartition(".")[0]
            if owner not in quantised:
                tensors[name] = checkpoint.tensor(name).to(torch.float32).contiguous()
    save_file(tensors, str(directory / "model.safetensors"), {"format": "pt"})
