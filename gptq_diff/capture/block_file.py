"""Tensors written as one safetensors file from where they lie: no copy is made, and other threads go on meanwhile.

The library's own `save_file` first copies every tensor into Python's bytes, and keeps Python's lock while it writes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_NAMES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64"}


def write_block(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Contiguous floating-point tensors of the CPU, under their names. OSError as the system gives it."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # stable; wide ones first are aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            file.write(_octets(tensor).data)


def _octets(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    import torch

    octets: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return octets
