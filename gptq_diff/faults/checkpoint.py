"""Sound checkpoints read, damaged copies written: what does not change is linked, not copied."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gptq_diff.faults.linear import Array, Linear

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS, CHANGES, INDEX = "model.safetensors", "changed.safetensors", "model.safetensors.index.json"


def one_file(path: Path) -> bool:
    """Whether `Stored` can read that checkpoint."""
    return (path / WEIGHTS).is_file() and ((path / CHANGES).is_file() or not (path / INDEX).is_file())


class Stored:
    """A checkpoint of one file, model.safetensors, or one that `copy_of` made; the planter's view of a sound model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self.settings: Mapping[str, Any] = self.config["quantization_config"]
        self._changed = load_file(str(path / CHANGES)) if (path / CHANGES).exists() else {}
        self._file: Any = safe_open(str(path / WEIGHTS), framework="numpy")
        self._names: frozenset[str] = frozenset(self._file.keys())  # type: ignore[no-untyped-call]
        self._linear = lru_cache(maxsize=None)(self._read)

    @property
    def linears(self) -> tuple[str, ...]:
        """In order of execution (Llama and Qwen2 blocks)."""
        names = [name[: -len(".qweight")] for name in self._names if name.endswith(".qweight")]
        return tuple(sorted(names, key=lambda n: (int(n.split(".")[2]), ORDER.index(n.split(".")[-1]))))

    def tensor(self, name: str) -> Array:
        """Any tensor, as numpy has it."""
        found: Array = self._changed[name] if name in self._changed else self._file.get_tensor(name)
        return found

    def linear(self, name: str) -> Linear:
        """A quantised linear."""
        return self._linear(name)

    def _read(self, name: str) -> Linear:
        bits, group_size = self.settings["bits"], self.settings["group_size"]
        qweight = self.tensor(f"{name}.qweight")
        rows = qweight.shape[0] * 32 // bits
        group_size = rows if group_size == -1 else min(group_size, rows)
        has_g_idx, has_bias = (f"{name}.{part}" in self._names for part in ("g_idx", "bias"))
        plain = (np.arange(rows) // group_size).astype(np.int32)
        bias = self.tensor(f"{name}.bias") if has_bias else None
        return Linear(
            name=name, bits=bits, offset=1 if self.settings.get("checkpoint_format", "gptq") == "gptq" else 0,
            group_size=group_size, sym=bool(self.settings.get("sym", True)),
            desc_act=bool(self.settings.get("desc_act")), qweight=qweight, qzeros=self.tensor(f"{name}.qzeros"),
            scales=self.tensor(f"{name}.scales"), g_idx=self.tensor(f"{name}.g_idx") if has_g_idx else plain, bias=bias,
        )  # fmt: skip


def copy_of(
    sound: Stored, changed: Mapping[str, Array], settings: Mapping[str, Any], out: Path, *, whole: bool
) -> Path:
    """A copy of the checkpoint with those tensors and quantisation settings.

    whole: one file again, as every engine reads it; else the weights are linked, the changed tensors in a file of
    their own, and an index says which lies where.
    """
    out.mkdir(parents=True)
    config = {**sound.config, "quantization_config": {**sound.settings, **settings}}
    for file in sound.path.iterdir():
        if file.suffix == ".safetensors" or file.name == INDEX:
            continue
        if file.name == "config.json":
            (out / file.name).write_text(json.dumps(config, indent=1), encoding="utf-8")
        elif file.name == "quantize_config.json" and settings:
            legacy = json.loads(file.read_text(encoding="utf-8"))
            (out / file.name).write_text(json.dumps({**legacy, **settings}, indent=1), encoding="utf-8")
        else:
            link(file, out / file.name)
    tensors = {**sound._changed, **{k: np.ascontiguousarray(v) for k, v in changed.items()}}
    if whole:
        both = {name: tensors.get(name) for name in sound._names}
        save_file(
            {k: sound.tensor(k) if v is None else v for k, v in both.items()}, str(out / WEIGHTS), {"format": "pt"}
        )
        return out
    link(sound.path / WEIGHTS, out / WEIGHTS)
    if tensors:
        save_file(tensors, str(out / CHANGES), {"format": "pt"})
    where = {name: CHANGES if name in tensors else WEIGHTS for name in sound._names}
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    return out


def link(file: Path, to: Path) -> None:
    """A hard link where both lie on one disk, else a copy."""
    try:
        os.link(file, to)
    except OSError as e:
        if e.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copy2(file, to)
