"""A linear's bias against product plus bias: rounding is explained, and so is what a kernel's runs differ by."""

from __future__ import annotations

import pytest
import torch

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


def test_a_kernel_that_does_not_repeat_itself_is_granted_its_own_noise() -> None:
    """Runs that differ by 1 % explain a third run that does; equal runs do not."""
    noise = [torch.randn(256, generator=torch.Generator().manual_seed(s)) * 0.01 for s in range(3)]
    product, bias = drawn(1).float(), drawn(2)
    runs = [(product + n).half() for n in noise]
    third = (runs[2].float() + bias.float()).half()
    assert judge_step("l", call(torch.stack(runs[:2]), third), bias).kind == "ok"
    assert judge_step("l", call(torch.stack([runs[0], runs[0]]), third), bias).kind == "diverged"


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
