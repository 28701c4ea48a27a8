"""The header of a safetensors file: 8 bytes with its length, then JSON. Reading it touches no tensor data.

Format: https://huggingface.co/docs/safetensors/index#format. Parsed here rather than with the library, so that a
damaged file gets a sentence that names the tensor, and so that the result is the same under every engine's version.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gptq_diff.checkpoint.jsonfile import parse_object
from gptq_diff.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # safetensors' own limit


class TensorEntry(NamedTuple):
    """Where a tensor lies (a tuple: a capture has hundreds of them a file, and a dataclass takes longer to make).

    file: the safetensors file.
    dtype: safetensors' name of it, for example "I32", "F16", "BF16".
    shape: as stored.
    start, end: its first byte and the byte after its last, counted from the file's start.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file by name, checked against the file's length."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: it has {size} bytes and its header claims {length}; "
                    "fetch the file again (git-lfs pointers and interrupted downloads look like this)"
                )
            header = parse_object(file.read(length), f"the safetensors header of {path}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    _check_extent(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and _naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise CheckpointError(f"the safetensors header of {path} has a broken entry for {name!r}; fetch the file again")
    expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{path} gives {name!r} {offsets[1] - offsets[0]} bytes where {dtype} {list(shape)} needs {expected}; "
            "fetch the file again"
        )
    return TensorEntry(path, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110  `all` makes a generator for each of a header's hundreds of lists
        if type(item) is not int or not 0 <= item < 2**63:
            return False
    return True


def _check_extent(path: Path, entries: dict[str, TensorEntry], data_start: int, size: int) -> None:
    """Tensors must lie one after the other and fill the file, as safetensors itself demands."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position or entry.end < entry.start:
            raise CheckpointError(f"{path} has a hole or an overlap before {name!r}; fetch the file again")
        position = entry.end
    if position != size:
        short = "truncated" if position > size else "longer than its header says"
        raise CheckpointError(f"{path} is {short}: {size} bytes instead of {position}; fetch the file again")
