"""Case files for tests, written out."""

from __future__ import annotations

from pathlib import Path

BANG = """
name = "bang"
description = "a tiny model that collapses"

[model]
build = "tiny-qwen2"
group_size = 64

[model.gain_shift]
block = 1
group = 2
gain = 8

[[prompt]]
id = "short"
token_ids = [510, 40, 41, 42, 43, 44, 45, 46]

[run]
backends = ["hf-fp16", "sim-gptq"]
reference = "hf-fp32"
max_new_tokens = 4

[[expect]]
backend = "sim-gptq"
prompt = "short"
status = "overflow"
layer = "model.layers.1.mlp.down_proj"
cause = "accumulator-overflow"
collapsed = true
"""


def write_case(folder: Path, text: str = BANG, *changes: tuple[str, str]) -> Path:
    """The case file, in a folder of its own, with pieces of its text replaced."""
    for old, new in changes:
        assert text.count(old) >= 1, f"{old!r} is not in the case"
        text = text.replace(old, new, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.toml").write_text(text, encoding="utf-8")
    return folder / "case.toml"
