"""Which safetensors files make up a checkpoint, and which tensor lies in which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptq_diff.checkpoint.header import TensorEntry, read_header
from gptq_diff.checkpoint.jsonfile import read_object
from gptq_diff.errors import CheckpointError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_tensors(directory: Path, quantisation: Mapping[str, object]) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name, from headers alone; `quantisation` may name the file (AutoGPTQ)."""
    index = _index_file(directory)
    if index is not None:
        return _indexed(directory, index)
    return read_header(_single_file(directory, quantisation))


def _index_file(directory: Path) -> Path | None:
    preferred = directory / "model.safetensors.index.json"
    if preferred.is_file():
        return preferred
    found = sorted(directory.glob("*.safetensors.index.json"))
    if len(found) > 1:
        raise CheckpointError(f"{directory} has {len(found)} indexes ({_names(found)}); keep the one that is meant")
    return found[0] if found else None


def _single_file(directory: Path, quantisation: Mapping[str, object]) -> Path:
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    base_name = quantisation.get("model_file_base_name")
    for name in ("model", base_name):
        named = [file for file in files if file.name == f"{name}.safetensors"]
        if named:
            return named[0]
    if files:
        raise CheckpointError(
            f"{directory} has {len(files)} safetensors files ({_names(files)}) and no index; "
            "add model.safetensors.index.json, or keep one file"
        )
    pickles = sorted(file for file in directory.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{directory} has its weights in {pickles[0].name}, a pickle, which can run code and is never opened; "
            "convert the checkpoint to safetensors"
        )
    if any(directory.glob("*.gguf")):
        raise CheckpointError(f"{directory} is a GGUF model, not a GPTQ checkpoint; give its GPTQ version")
    raise CheckpointError(f"{directory} has no *.safetensors file; fetch the weights of the model")


def _indexed(directory: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; fetch the file again")
    headers: dict[str, dict[str, TensorEntry]] = {}
    tensors: dict[str, TensorEntry] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} puts {name!r} into {shard!r}, which is not a safetensors file beside it; fetch the file again"
            )
        if shard not in headers:
            if not (directory / shard).is_file():
                raise CheckpointError(f"{directory} lacks the shard {shard} that its index names; fetch that file")
            headers[shard] = read_header(directory / shard)
        if name not in headers[shard]:
            raise CheckpointError(f"{index} says that {name!r} lies in {shard}, which lacks it; fetch both files again")
        tensors[name] = headers[shard][name]
    return tensors


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
