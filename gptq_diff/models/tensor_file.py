"""Safetensors files written tensor by tensor, so that 18 GB are never held in memory.

The format (https://github.com/huggingface/safetensors#format) puts all shapes in front: eight bytes of length, a JSON
header, then the tensors without gaps. Shapes are planned first, the data follows in the same order.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
import numpy.typing as npt

from gptq_diff.errors import GptqDiffError

Array = npt.NDArray[Union[np.float16, np.int32]]
_NUMPY: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "I32": np.dtype("<i4")}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: its name, safetensors dtype ("F16" or "I32") and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * _NUMPY[self.dtype].itemsize


@dataclass(frozen=True)
class TensorData:
    """The data of the planned tensor of that name: C-order pieces that follow each other along the first axis."""

    name: str
    pieces: Iterable[Array]


def write_tensors(
    directory: Path, plans: list[TensorPlan], data: Iterable[TensorData], shard_bytes: int = 2_000_000_000
) -> None:
    """Write `model.safetensors`, or shards with `model.safetensors.index.json`, from data in the order of the plans."""
    needed, free = sum(plan.nbytes for plan in plans), shutil.disk_usage(directory).free
    if needed > free:
        raise GptqDiffError(
            f"the weights need {needed / 1e9:.1f} GB and {directory.parent} has {free / 1e9:.1f} GB free",
            hint="build fewer blocks, or elsewhere with --out",
        )
    shards = list(_shards(plans, shard_bytes))
    source = iter(data)
    weight_map = {}
    flushed: list[Future[None]] = []
    with ThreadPoolExecutor(1) as beside:  # a disk may take longer than the making
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(directory / name, shard, source)
            flushed.append(beside.submit(_flush, directory / name))
            weight_map.update({plan.name: name for plan in shard})
    for one in flushed:
        one.result()
    if next(source, None) is not None:
        raise AssertionError("more tensors came than were planned")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(plan.nbytes for plan in plans)}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def tensors_complete(directory: Path) -> bool:
    """Whether every file that belongs to the weights is there and as long as its header says."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {"model.safetensors"}
    return all(_is_whole(directory / name) for name in names)


def _is_whole(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < 8:
        return False
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    ends: list[int] = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    whole: int = 8 + length + max(ends)
    return path.stat().st_size == whole


def _shards(plans: list[TensorPlan], shard_bytes: int) -> Iterator[list[TensorPlan]]:
    """Consecutive plans of at most `shard_bytes` together; a larger tensor is a shard of its own."""
    shard: list[TensorPlan] = []
    for plan in plans:
        if shard and sum(one.nbytes for one in shard) + plan.nbytes > shard_bytes:
            yield shard
            shard = []
        shard.append(plan)
    yield shard


def _write_shard(path: Path, plans: list[TensorPlan], source: Iterator[TensorData]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {
            "dtype": plan.dtype,
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.nbytes],
        }
        offset += plan.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for plan in plans:
            _write_tensor(file, plan, next(source))


def _flush(path: Path) -> None:
    """To the disk itself, so that a rename afterwards does not name what is not there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_tensor(file: IO[bytes], plan: TensorPlan, tensor: TensorData) -> None:
    if tensor.name != plan.name:
        raise AssertionError(f"{tensor.name} came where {plan.name} was planned")
    written = 0
    for piece in tensor.pieces:
        if piece.dtype != _NUMPY[plan.dtype] or piece.shape[1:] != plan.shape[1:]:
            raise AssertionError(f"{plan.name}: a piece of {piece.dtype} {piece.shape} does not fit {plan}")
        file.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
    if written != plan.nbytes:
        raise AssertionError(f"{plan.name}: {written} of {plan.nbytes} bytes came")
