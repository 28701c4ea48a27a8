"""Equality of bits against numpy's bytes."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.capture.bits import other_bits, same_bits

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("a", "b", "same"),
    [([1.0, NAN], [1.0, NAN], True), ([0.0], [-0.0], False), ([1.0, 2.0], [1.0, 2.5], False), ([], [], True)],
)
def test_bits_decide_and_not_values(dtype: torch.dtype, a: list[float], b: list[float], same: bool) -> None:
    """NaN is itself, and minus zero is not zero; gaps between values do not matter."""
    first, second = torch.tensor([a, a], dtype=dtype), torch.tensor([b, b], dtype=dtype)
    for one, other in ((first, second), (first.t().contiguous().t(), second)):
        assert same_bits(one, other) == same
        assert bool(other_bits(one, other)) != same


def test_another_shape_or_dtype_is_not_the_same() -> None:
    """Whatever the bytes are."""
    zeros = torch.zeros(2, 4, dtype=torch.float16)
    assert not same_bits(zeros, zeros.view(4, 2))
    assert not same_bits(zeros, zeros.bfloat16())
    assert not same_bits(zeros, torch.zeros(2, 2, dtype=torch.float32))
