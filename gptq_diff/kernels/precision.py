"""Keeping a GPU's matmuls as precise as their dtypes say, while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_OFF = ("allow_fp16_accumulation", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
"""Switches of torch.backends.cuda.matmul that let half-precision sums be rounded to half on the way."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in float32 products and no float16 sums in float16 ones while inside; afterwards as it was before.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices: the switch is
    `fp32_precision` from torch 2.9 on, which refuses to be read through `allow_tf32` where only it was set.
    """
    matmul = torch.backends.cuda.matmul
    wanted: dict[str, object] = (
        {"fp32_precision": "ieee"} if hasattr(matmul, "fp32_precision") else {"allow_tf32": False}
    )
    wanted.update({name: False for name in _OFF if hasattr(matmul, name)})
    before = {name: getattr(matmul, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(matmul, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
