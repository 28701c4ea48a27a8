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


class MappedFiles:
    """The open maps of a checkpoint's files, one a file, made on first use.

    The map is private (copy on write), so a tensor that somebody writes to by mistake never reaches the file.
    """

    def __init__(self) -> None:
        self._storages: dict[Path, torch.UntypedStorage] = {}
        self._whole: dict[tuple[Path, str], torch.Tensor] = {}

    def tensor(self, name: str, entry: TensorEntry) -> torch.Tensor:
        """The tensor as a view of the map; a copy only where its first byte is not aligned to its dtype."""
        import torch

        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{name} has the dtype {entry.dtype}, which is not supported")
        dtype: torch.dtype = getattr(torch, _DTYPES[entry.dtype])
        storage = self._storage(entry.file)
        if entry.start % dtype.itemsize == 0:
            whole = self._whole.get((entry.file, entry.dtype))
            if whole is None:
                whole = self._whole[entry.file, entry.dtype] = torch.empty(0, dtype=dtype).set_(storage)
            return whole[entry.start // dtype.itemsize : entry.end // dtype.itemsize].view(entry.shape)
        octets = torch.empty(0, dtype=torch.uint8).set_(storage)
        return octets[entry.start : entry.end].clone().view(dtype).view(entry.shape)

    def close(self) -> None:
        """Forget the maps; each goes when the last tensor that looks into it goes."""
        self._whole.clear()
        self._storages.clear()

    def _storage(self, file: Path) -> torch.UntypedStorage:
        import torch

        if file not in self._storages:
            try:
                size = file.stat().st_size
                storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{file} cannot be mapped into memory: {error}") from error
            assert isinstance(storage, torch.UntypedStorage)
            self._storages[file] = storage
        return self._storages[file]
