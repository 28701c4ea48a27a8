"""Doublings: what a kernel stands is what its sums leave, up or down, and what cannot be made exactly is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.diagnose.headroom.stress import GAIN_SHIFT, SCALED_INPUT, stress
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.kernels.fp16 import Fp16Kernel
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.records import LayerSpec, Support
from tests.kernels.fast_path_cases import draw


class Breaking(Kernel):
    """Exact, but for its first output, which is infinite as soon as a channel of x passes a size."""

    name = "breaking"

    def __init__(self, channel: int, limit: float, path: str = "exllama-fast") -> None:
        self.channel, self.limit, self.path = channel, limit, path

    def supports(self, spec: LayerSpec) -> Support:
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        y_MN = (x_MK.double() @ dequantise(linear, torch.float64)).half()
        if float(x_MK[:, self.channel].abs().max()) > self.limit:
            y_MN[0, 0] = math.inf
        return Product(y_MN, self.path)


def a_case(seed: int, bits: int = 4, size: float = 1.0, **shape: object):
    case = draw(np.random.default_rng(seed), bits, 64, "ordinary", m=4, k=256, n=32, sym=True, **shape)
    case.x[:] *= np.float16(size)
    return torch.from_numpy(case.x), case.linear()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_simulated_fast_path_stands_what_its_lanes_leave(bits: int, seed: int) -> None:
    """To the doubling, by gain shift of the group with the largest sum."""
    x_MK, linear = a_case(seed, bits, 200.0, desc_act=seed == 1)
    stood = stress(SimExllama(0), replace(linear, scales=linear.scales * 4), x_MK)
    assert stood is not None
    assert (stood.path, stood.how, stood.arithmetic) == ("exllama-fast", GAIN_SHIFT, "lane")
    assert stood.broke
    assert stood.doublings == stood.computed
    assert stood.ended.startswith("overflow: ")


def test_an_input_that_breaks_already() -> None:
    """Its doublings are negative: so often it must be halved."""
    x_MK, linear = a_case(5)
    x_MK[2, 70] = 40000.0
    stood = stress(SimExllama(0), replace(linear, scales=linear.scales / 16), x_MK)
    assert stood is not None
    assert stood.computed == stood.doublings < 0
    assert (stood.channel, stood.group, stood.row) == (70, 1, 2)


@pytest.mark.parametrize(("kernel", "arithmetic"), [(SimReconstruct(0), "accumulator"), (Fp16Kernel(0), "result")])
def test_scaled_sums_grow_with_the_input(kernel: Kernel, arithmetic: str) -> None:
    """A gain shift would not reach them: all of x is doubled, until the accumulator or the result is too large."""
    x_MK, linear = a_case(7, size=100.0)
    stood = stress(kernel, replace(linear, scales=linear.scales * 16), x_MK)
    assert stood is not None
    assert (stood.how, stood.arithmetic, stood.group) == (SCALED_INPUT, arithmetic, None)
    assert stood.broke
    assert abs(stood.doublings - stood.computed) <= 1


def test_a_kernel_that_never_breaks() -> None:
    """float32 stands every doubling that can be made: the input ends it, and that is said."""
    x_MK, linear = a_case(1)
    stood = stress(ExactKernel(0), linear, x_MK)
    assert stood is not None
    assert not stood.broke
    assert stood.ended == "the input itself would leave float16"


@pytest.mark.parametrize("limit", [0.3, 3.0, 500.0])
def test_the_kernel_is_asked_not_the_formula(limit: float) -> None:
    """A kernel that breaks where no sum says so is measured where it breaks."""
    x_MK, linear = a_case(2)
    x_MK[1, 200] = 200.0  # carries the largest sum, so its group is the one that grows
    kernel = Breaking(200, limit)
    stood = stress(kernel, linear, x_MK)
    assert stood is not None
    assert stood.doublings == math.floor(math.log2(limit / 200.0))
    assert stood.broke


def test_inexact_scales_are_refused() -> None:
    """A gain that would make a scale subnormal is not tried; the kernel stood all before it.

    One column's scale in the group stands two halvings above the smallest normal half. Its result could be lifted, but
    for another column's scale, which is near the largest half.
    """
    x_MK, linear = a_case(3)
    x_MK[:, :64] *= 2  # the group that grows
    scales = linear.scales.clone()
    scales[0, 3] = 2.0**-12
    lifted = stress(SimExllama(0), replace(linear, scales=scales), x_MK)
    assert lifted is not None
    assert lifted.group == 0
    assert lifted.broke
    assert lifted.doublings == lifted.computed > 2
    scales[3, 5], x_MK[:, 192:] = 40000.0, 0.0
    stood = stress(SimExllama(0), replace(linear, scales=scales), x_MK)
    assert stood is not None
    assert (stood.doublings, stood.broke) == (2, False)
    assert "scales would be rounded or subnormal" in stood.ended


def test_marlin_with_one_group_grows_its_unscaled_sum() -> None:
    """All channels are one group, whose whole sum must fit."""
    case = draw(np.random.default_rng(4), 4, 256, "ordinary", m=4, k=256, n=32, sym=True)
    linear = case.linear()
    linear = replace(linear, spec=replace(linear.spec, sym=True))
    x_MK = torch.from_numpy(case.x)
    largest = float((x_MK.double() @ torch.from_numpy((case.codes - 8).astype(np.float64))).abs().max())

    class Marlin(Breaking):
        def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
            y_MN = (x_MK.double() @ dequantise(linear, torch.float64) / linear.scales.double()).half().double()
            return Product((y_MN * linear.scales.double()).half(), "marlin")

    stood = stress(Marlin(0, 0), linear, x_MK)
    assert stood is not None
    assert (stood.arithmetic, stood.group) == ("unscaled-sum", 0)
    assert stood.bits == pytest.approx(math.log2(65504 / largest), abs=1e-4)
    assert abs(stood.doublings - stood.computed) <= 1 or not stood.broke


def test_nothing_to_grow() -> None:
    """Zeros have no sums."""
    _, linear = a_case(0)
    assert stress(SimExllama(0), linear, torch.zeros(2, 256, dtype=torch.float16)) is None
