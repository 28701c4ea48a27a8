"""Tensors that are views of a memory-mapped safetensors file: pages come in when touched and belong to the file.

torch is imported when the first tensor is asked for: what a checkpoint holds is told, and refused, without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.checkpoint.header import TensorEntry
from gptq_diff.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Their names in torch by those in a header."""


class MappedFile:
    """The open map of one file, made on first use.

    The map is private (copy on write), so a tensor that somebody writes to by mistake never reaches the file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._storage: torch.UntypedStorage | None = None
        self._whole: dict[str, torch.Tensor] = {}  # all of it, by dtype

    def tensor(self, name: str, entry: TensorEntry) -> torch.Tensor:
        """The tensor as a view of the map; a copy only where its first byte is not aligned to its dtype."""
        whole = self._whole.get(entry.dtype)
        if whole is None:
            if entry.dtype not in _DTYPES:
                raise CheckpointError(f"{name} has the dtype {entry.dtype}, which is not supported")
            whole = self._whole[entry.dtype] = self._as(_DTYPES[entry.dtype])
        size = whole.itemsize
        if entry.start % size == 0:
            return whole.as_strided(entry.shape, _contiguous(entry.shape), entry.start // size)
        octets = self._as("uint8")
        return octets[entry.start : entry.end].clone().view(whole.dtype).view(entry.shape)

    def _as(self, dtype: str) -> torch.Tensor:
        import torch

        if self._storage is None:
            self._storage = _mapped(self._file)
        return torch.empty(0, dtype=getattr(torch, dtype)).set_(self._storage)


class MappedFiles:
    """The open maps of a checkpoint's files, one a file."""

    def __init__(self) -> None:
        self._maps: dict[Path, MappedFile] = {}

    def tensor(self, name: str, entry: TensorEntry) -> torch.Tensor:
        """As that file's map has it."""
        if entry.file not in self._maps:
            self._maps[entry.file] = MappedFile(entry.file)
        return self._maps[entry.file].tensor(name, entry)

    def close(self) -> None:
        """Forget the maps; each goes when the last tensor that looks into it goes."""
        self._maps.clear()


def _mapped(file: Path) -> torch.UntypedStorage:
    import torch

    try:
        storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=file.stat().st_size)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be mapped into memory: {error}") from error
    assert isinstance(storage, torch.UntypedStorage)
    return storage


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of that shape; one call with them takes half as long as a slice and a view."""
    if len(shape) == 2:
        return shape[1], 1
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
