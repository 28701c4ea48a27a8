"""Counting what is not a number, and the largest of what is."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.numerics.magnitude import Magnitude, magnitude, row_absmax

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
def test_the_largest_of_every_row_is_that_of_its_magnitudes(dtype):
    """Whatever sign it has; NaN and infinities are passed on, and zeros have no sign."""
    values_MN = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    values_MN[0], values_MN[1], values_MN[2] = 0.0, -0.0, -1.0
    values_MN[3, 5], values_MN[4, 6], values_MN[5, 7] = NAN, INF, -INF
    found, expected = row_absmax(values_MN), values_MN.abs().amax(dim=1)
    assert found.dtype == dtype and torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.isnan(found).tolist() == torch.isnan(expected).tolist() == [i == 3 for i in range(300)]
    assert not bool(torch.signbit(found[:2]).any())
