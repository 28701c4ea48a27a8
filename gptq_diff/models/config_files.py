"""config.json, quantize_config.json and generation_config.json of a built GPTQ checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gptq_diff.models.options import QuantFormat

BUILD_KEY = "gptq_diff"


def write_configs(
    directory: Path, architecture: Mapping[str, object], generation: Mapping[str, object], quant: QuantFormat
) -> None:
    """Write the three files; `architecture` is config.json without its quantization_config."""
    quantization = {
        "bits": quant.bits,
        "group_size": quant.group_size,
        "sym": quant.sym,
        "desc_act": quant.desc_act,
        "checkpoint_format": quant.checkpoint_format,
        "quant_method": "gptq",
        "static_groups": False,
        "true_sequential": True,
        "damp_percent": 0.01,
        "lm_head": False,
    }
    _write(directory / "config.json", {**architecture, "torch_dtype": "float16", "quantization_config": quantization})
    # auto_gptq wants the name of the weights' file beside the same facts
    _write(
        directory / "quantize_config.json",
        {**quantization, "model_name_or_path": None, "model_file_base_name": "model", "is_marlin_format": False},
    )
    _write(directory / "generation_config.json", dict(generation))


def add_build_record(directory: Path, record: Mapping[str, object]) -> None:
    """Put what was built, and with which options, into config.json."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    _write(path, {**config, BUILD_KEY: dict(record)})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
