"""The bfloat16 kernel against its formula in float64, and its error model against the error that it makes."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.numerics import floors
from tests.diagnose.build import inputs, make


@pytest.mark.parametrize("rows", [1, 37])
def test_weights_and_result_are_rounded_to_eight_bits_and_nothing_else(rows: int) -> None:
    """Against float64 sums of rounded weights: at most one step of bfloat16 apart, by the order of sums."""
    q, x = make("x", 96), inputs(rows).bfloat16()
    product = make_kernel("bf16").multiply(x, q.linear)
    assert product.path == "bf16" and product.y_MN.dtype == torch.bfloat16
    expected = x.double() @ dequantise(q.linear).bfloat16().double()
    step = expected.abs() * 2.0**-7
    assert bool(((product.y_MN.double() - expected).abs() <= 0.51 * step + 1e-4).all())


@pytest.mark.parametrize("rows", [1, 37])
def test_its_error_model_explains_its_error_and_not_three_times_of_it(rows: int) -> None:
    """By row: the measured error lies between a third of the floor and three times it."""
    q, x = make("x", 512), inputs(rows).bfloat16()
    w_KN = dequantise(q.linear).double()
    exact_MN = x.double() @ w_KN
    error2_M = (make_kernel("bf16").multiply(x, q.linear).y_MN.double() - exact_MN).square().sum(dim=1)
    energy_M = x.double().square() @ w_KN.square().sum(dim=1)
    known = floors.Rows(energy_M, exact_MN.square().sum(dim=1), 512, 512.0, 4)
    share_M = (error2_M / floors.expected_error2("bf16", known)).sqrt()
    assert bool((share_M < 3).all() and (share_M > 1 / 3).all()), share_M


def test_results_beyond_float16_are_finite() -> None:
    """What it is for: 100,000 is a bfloat16 and no float16."""
    q = make("x", 96)
    x = torch.full((1, 512), 3000.0)
    x = torch.where(dequantise(q.linear)[:, 0] > 0, x, -x)
    assert not bool(make_kernel("fp16").multiply(x.half(), q.linear).y_MN.isfinite().all())
    assert bool(make_kernel("bf16").multiply(x.bfloat16(), q.linear).y_MN.isfinite().all())
