"""Equality of bits, NaN and signed zeros included."""

from __future__ import annotations

import torch

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers that stand for the values."""


def other_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether any value of two tensors of one shape and dtype differs in bits: a tensor, not waited for here."""
    bits = _BITS[a.element_size()]
    return (a.view(bits) != b.view(bits)).any()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they are of one shape and dtype, and all bits the same: known at the first that differs, on a CPU."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))
