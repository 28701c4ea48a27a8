"""Counting what is not a number, and the largest of what is."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.numerics.magnitude import Magnitude, magnitude

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -3.0, 2.0], Magnitude(3.0, 0, 0)),
        ([0.0], Magnitude(0.0, 0, 0)),
        ([], Magnitude(0.0, 0, 0)),
        ([INF, -INF, 5.0], Magnitude(5.0, 0, 2)),
        ([-INF, 5.0], Magnitude(5.0, 0, 1)),
        ([NAN, 5.0, INF, -7.0], Magnitude(7.0, 1, 1)),
        ([NAN, NAN], Magnitude(0.0, 2, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_largest_finite_value_and_counts(values, expected, dtype):
    found = magnitude(torch.tensor(values, dtype=dtype))
    assert found == expected
    assert found.nonfinite == expected.nan + expected.inf
