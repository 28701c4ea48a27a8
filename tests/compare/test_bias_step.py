"""A linear's bias against product plus bias: rounding is explained, and so is what a kernel's runs differ by."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.capture.bias_step import RUNS_ON_A_GPU, spread
from gptq_diff.capture.tap import BIAS
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.compare.steps_after import judge_step


def drawn(seed: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(256, generator=torch.Generator().manual_seed(seed)) * scale).half()


def call(product_RN: torch.Tensor, y_N: torch.Tensor) -> CapturedCall:
    return CapturedCall(
        step=0, index=3, path=BIAS, x_MK=product_RN, y_MN=y_N[None], reference_x=None, inherited_l2_rel=None, part=BIAS
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(20))
def test_an_addition_in_float16_is_within_its_rounding(seed: int, scale: float) -> None:
    """Whatever the sizes of product and bias; and so is one that was added before the product was rounded."""
    product, bias = drawn(seed), drawn(seed + 100, scale)
    found = judge_step("l", call(product[None], product + bias), bias)
    assert (found.kind, found.cause, found.part, found.rows) == ("ok", None, "bias", 1)
    assert found.excess is not None
    assert found.excess < 1.0
    wide = drawn(seed).float() * 1.0001
    early = judge_step("l", call(wide.half()[None], (wide + bias.float()).half()), bias)
    assert early.kind == "ok"


def test_in_float32_the_rounding_is_finer() -> None:
    """An error that float16 would hide is one in float32."""
    product, bias = drawn(1).float(), drawn(2).float()
    good = judge_step("l", call(product[None], product + bias), bias)
    bad = judge_step("l", call(product[None], product + bias * 1.0001), bias)
    assert (good.kind, bad.kind, bad.cause) == ("ok", "diverged", "bias")


def runs_in_any_order(parts_SN: torch.Tensor, runs: int, seldom: float, draw: torch.Generator) -> list[torch.Tensor]:
    """Sums of float16 slices as a GPU's atomic additions give them: a block of 128 columns now and then in another
    order."""
    found = []
    for _ in range(runs):
        blocks = []
        for block_SN in parts_SN.split(128, dim=1):
            other = bool(torch.rand(1, generator=draw) < seldom)
            order = torch.randperm(len(block_SN), generator=draw) if other else torch.arange(len(block_SN))
            total_N = torch.zeros(block_SN.shape[1], dtype=torch.float16)
            for slice_N in block_SN[order]:
                total_N = total_N + slice_N
            blocks.append(total_N)
        found.append(torch.cat(blocks)[None])
    return found


@pytest.mark.parametrize("seldom", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(25))
def test_slices_added_in_any_order_are_no_bias(seed: int, seldom: float) -> None:
    """However seldom the order changes: the median does not move; a bias that is not added is seen all the same."""
    draw = torch.Generator().manual_seed(seed)
    parts_SN, bias = torch.randn(4, 256, generator=draw).half(), drawn(seed, 0.1)
    without = spread(runs_in_any_order(parts_SN, RUNS_ON_A_GPU, seldom, draw))
    again = runs_in_any_order(parts_SN, RUNS_ON_A_GPU, seldom, draw)
    assert judge_step("l", call(without, spread([run + bias for run in again])[0]), bias).kind == "ok"
    assert judge_step("l", call(without, spread(again)[0]), bias).kind == "diverged"


def test_the_spread_of_runs() -> None:
    """Median, smallest, largest of every column; a NaN in one run is kept."""
    runs = [torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, float("nan")]]), torch.tensor([[2.0, 5.0]])]
    found = spread(runs)
    assert found[:, 0].tolist() == [2.0, 1.0, 3.0]
    assert bool(found[:, 1].isnan().all())


def test_values_that_are_lost() -> None:
    """Infinite where the sum is beyond float16 is the format's fault; elsewhere the addition's; a lost product is not
    judged."""
    product, bias = drawn(1), drawn(2)
    product[5], bias[5] = 60000.0, 30000.0
    beyond = judge_step("l", call(product[None], product + bias), bias)
    assert (beyond.kind, beyond.cause, beyond.nonfinite, beyond.first_index) == (
        "overflow",
        "result-overflow",
        1,
        (0, 5),
    )
    y = product + bias
    y[7] = float("nan")
    assert judge_step("l", call(product[None], y), bias).cause == "bias"
    lost = judge_step("l", call(torch.full((1, 256), float("nan")).half(), y), bias)
    assert (lost.kind, lost.excess) == ("inherited", None)
