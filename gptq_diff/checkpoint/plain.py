"""A checkpoint that is not quantised, memory-mapped: what a GPTQ model was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gptq_diff.checkpoint.fingerprint import fingerprint_of
from gptq_diff.checkpoint.jsonfile import read_object
from gptq_diff.checkpoint.mapping import MappedFiles
from gptq_diff.checkpoint.shards import find_tensors
from gptq_diff.errors import CheckpointError
from gptq_diff.records import SkippedLayer

if TYPE_CHECKING:
    import torch

    from gptq_diff.checkpoint.header import TensorEntry

_PACKED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax")
"""Ends of the tensor names of quantised linears: GPTQ and AWQ, compressed-tensors, FP8, bitsandbytes."""


class PlainCheckpoint:
    """Its tensors by name; use `open_plain`.

    path: its directory, absolute. config: config.json as parsed. skipped: empty, nothing of it is left out.
    """

    skipped: tuple[SkippedLayer, ...] = ()

    def __init__(self, path: Path, config: Mapping[str, object], tensors: Mapping[str, TensorEntry]) -> None:
        self.path = path
        self.config = config
        self._tensors = tensors
        self._files = MappedFiles()

    def tensor(self, name: str) -> torch.Tensor:
        """Any tensor of the checkpoint, memory-mapped."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor called {name!r}")
        return self._files.tensor(name, self._tensors[name])

    def tensor_names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape from the header alone; None where there is no such tensor."""
        return self._tensors[name].shape if name in self._tensors else None

    def fingerprint(self, *, full: bool = False) -> str:
        """Sha256, hex, over config, tensor names, dtypes and shapes, and samples; `full` reads every byte."""
        return fingerprint_of(self.config, self._tensors, full=full)


def open_plain(path: Path) -> PlainCheckpoint:
    """Open a directory as an unquantised checkpoint; CheckpointError, one sentence, for anything that is not one."""
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}; check the path")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{directory} has no config.json, so it is no model directory; check the path")
    config = read_object(config_file)
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} has no *.safetensors file; give the unquantised model as safetensors")
    tensors = find_tensors(directory, {})
    packed = next((name for name in sorted(tensors) if name.endswith(_PACKED)), None)
    if packed is not None or config.get("quantization_config"):
        why = f"it has the tensor {packed}" if packed is not None else "its config.json has a quantization_config"
        raise CheckpointError(f"{directory} is quantised itself: {why}; give the model that was quantised")
    return PlainCheckpoint(directory, MappingProxyType(config), tensors)
