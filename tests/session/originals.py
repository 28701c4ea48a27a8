"""The model that a tiny quantised checkpoint could have been made from, dequantised in the tests' own way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.engines.models import Tensors, unpacked


def original_of(model: Path, to: Path, change: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """Plain float32 weights (exactly the quantised ones), changed in place by `change`; everything else as stored."""
    shutil.copytree(model, to)
    tensors = load_file(to / "model.safetensors")
    plain: Tensors = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            plain[f"{owner}.weight"] = unpacked(tensors, owner)
        elif leaf not in ("qzeros", "scales", "g_idx"):
            plain[name] = tensor
    change(plain)
    save_file(plain, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    del config["quantization_config"]
    (to / "config.json").write_text(json.dumps(config))
    (to / "quantize_config.json").unlink(missing_ok=True)
    return to
