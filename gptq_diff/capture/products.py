"""Calls of one linear by itself (jobs.LinearJob): the input of each, and the file that their outputs are stored in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from gptq_diff.capture.store import damaged, save_tensors
from gptq_diff.errors import CaptureError
from gptq_diff.jobs import LinearCall

X = "x"
"""Name of the tensor in the file of inputs."""
PATHS = "paths"
"""Key of the file's metadata that holds, as JSON, the path that ran by the name of the call."""


@dataclass(frozen=True)
class CallProducts:
    """What one call gave.

    y_RMN: as the kernel returned it, [repeats, kept rows, N], on the CPU. path: that ran (kernels.base.Product.path).
    """

    y_RMN: torch.Tensor
    path: str


def call_input(x_MK: torch.Tensor, call: LinearCall) -> torch.Tensor:
    """The input of that call, [rows, K] in the dtype of the stored x: what the kernel got, and the judge has to use.

    A halving of x is exact until its values become subnormal.
    """
    chosen_MK = x_MK[list(call.rows)]
    if call.zero:
        return torch.zeros_like(chosen_MK)
    if call.halvings:
        chosen_MK = torch.ldexp(chosen_MK.double(), torch.tensor(-call.halvings)).to(x_MK.dtype)
    if not call.kept:
        return chosen_MK
    sliced_MK = torch.zeros_like(chosen_MK)
    for first, last in call.kept:
        sliced_MK[:, first:last] = chosen_MK[:, first:last]
    return sliced_MK


def kept_rows(call: LinearCall) -> tuple[int, ...]:
    """Which rows of the call's y are stored."""
    return call.keep or tuple(range(len(call.rows)))


def write_products(path: Path, products: dict[str, CallProducts]) -> None:
    """All of them in one file, by rename. CaptureError when it cannot be written."""
    tensors = {name: p.y_RMN.contiguous() for name, p in products.items()}
    save_tensors(tensors, path, {PATHS: json.dumps({name: p.path for name, p in products.items()})})


def read_products(path: Path) -> dict[str, CallProducts]:
    """By the name of the call; CaptureError when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stored:
            paths = json.loads((stored.metadata() or {})[PATHS])
            return {name: CallProducts(stored.get_tensor(name), str(path)) for name, path in paths.items()}
    except FileNotFoundError:
        raise CaptureError(f"{path} is missing: its worker did not finish", "run the experiments again") from None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as e:
        raise damaged(path, e) from None


def read_input(path: Path) -> torch.Tensor:
    """The stored x [M, K]; CaptureError when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stored:
            found: torch.Tensor = stored.get_tensor(X)
            return found
    except FileNotFoundError:
        raise CaptureError(f"{path} is missing", "run the experiments again") from None
    except (SafetensorError, OSError) as e:
        raise damaged(path, e) from None
