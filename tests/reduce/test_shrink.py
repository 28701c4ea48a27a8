"""The pair of calls, held against arithmetic of its own."""

from __future__ import annotations

import torch

from gptq_diff.kernels.base import Product
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.reduce.call import Call, packed
from gptq_diff.reduce.narrowed import NarrowedSum
from gptq_diff.reduce.shrink import Pair, shrink
from gptq_diff.reduce.trial import Fault, Trial, simulated
from tests.reduce.calls import exact_of, random_call

OVERFLOW = Fault("overflow", None)


def reduced(call: Call, kernel: type, columns: int = 8, fault: Fault = OVERFLOW) -> Pair | None:
    """The pair, looked for from what the kernel gives for the whole call."""
    return shrink(call, kernel().multiply(call.x_MK, packed(call)).y_MN, Trial(simulated(kernel), fault), columns)


def lane_sums(call: Call) -> torch.Tensor:
    """The largest sum of four unscaled products, of even or odd rows of every eight, float64."""
    x, w = call.x_MK.double(), call.codes_KN.double() - 8
    sums = [x[:, k : k + 8 : 2] @ w[k : k + 8 : 2] for start in range(0, len(w), 8) for k in (start, start + 1)]
    return torch.stack(sums).abs().amax()


class TestFusedPath:
    def call(self) -> Call:
        """One activation of 12000 on codes of every kind, in row 3 of 20, K of 4.5 blocks."""
        call = random_call(20, 576, 48, 64)
        call.x_MK[3, 300] = 12000.0
        return call

    def test_one_input_and_one_code_are_left(self) -> None:
        pair = reduced(self.call(), SimExllama)
        assert pair is not None
        assert pair.failing.shape == (1, 128, 8)
        assert len(pair.failing.inputs) == 1
        assert int((pair.failing.codes_KN != 8).sum()) == 1

    def test_the_pair_lies_on_both_sides_of_the_largest_half(self) -> None:
        """Computed apart: the failing call's sum rounds to infinity, the passing one's does not."""
        pair = reduced(self.call(), SimExllama)
        assert pair is not None
        assert float(lane_sums(pair.failing)) >= 65520 > float(lane_sums(pair.passing))
        assert all(float(exact_of(call).abs().max()) < 65504 for call in (pair.failing, pair.passing))

    def test_the_passing_call_is_one_step_away(self) -> None:
        pair = reduced(self.call(), SimExllama)
        assert pair is not None
        fails, passes = (call.x_MK.abs().max().view(torch.int16) for call in (pair.failing, pair.passing))
        assert int(fails) - int(passes) == 1
        assert int((pair.failing.x_MK != pair.passing.x_MK).sum()) == 1

    def test_a_sum_that_takes_several_inputs_keeps_them(self) -> None:
        """Four activations of 3000 in one lane: none overflows alone."""
        call = random_call(5, 256, 16, 128)
        call.codes_KN[64:72] = 15
        call.x_MK[2, 64:72:2] = 3000.0
        pair = reduced(call, SimExllama)
        assert pair is not None
        assert len(pair.failing.inputs) == 4
        step = 4 * 16  # what the roundings on the way may add
        assert float(lane_sums(pair.failing)) >= 65520 - step
        assert float(lane_sums(pair.passing)) < 65520 + step

    def test_the_same_pair_every_time(self) -> None:
        a, b = (reduced(self.call(), SimExllama) for _ in range(2))
        assert a is not None
        assert b is not None
        assert torch.equal(a.failing.x_MK, b.failing.x_MK)
        assert torch.equal(a.failing.codes_KN, b.failing.codes_KN)

    def test_a_sound_call_gives_nothing(self) -> None:
        assert reduced(random_call(3, 256, 16, 64), SimExllama) is None

    def test_zero_points_of_their_own_and_long_groups(self) -> None:
        """Zero points beside the middle and groups of 256 rows become plain where the call still fails."""
        call = random_call(2, 512, 16, 256)
        call.zeros_GN.copy_(torch.tensor([3, 5]).repeat_interleave(16).reshape(2, 16))
        call.x_MK[1, 400] = 12000.0
        pair = reduced(call, SimExllama)
        assert pair is not None
        assert pair.failing.shape[1] == 128
        assert bool((pair.failing.zeros_GN == 8).all())
        assert float(lane_sums(pair.failing)) >= 65520 > float(lane_sums(pair.passing))


def test_marlin_with_one_scale_a_column() -> None:
    """Computed apart: the whole unscaled sum passes the largest half, in a call as wide as Marlin's tile."""
    call = random_call(4, 512, 128, 512)
    call.x_MK[1, 77] = 11000.0
    pair = reduced(call, NarrowedSum, columns=64)
    assert pair is not None
    assert pair.failing.shape == (1, 128, 64)
    sums = [(c.x_MK.double() @ (c.codes_KN.double() - 8)).abs().max() for c in (pair.failing, pair.passing)]
    assert float(sums[0]) >= 65520 > float(sums[1])


def test_products_that_cancel_on_the_reconstruct_path() -> None:
    """Computed apart: each of two products overflows a half, their sum is small."""
    call = random_call(3, 256, 16, 128)
    call.scales_GN[:] = 0.5
    call.x_MK[:] = 0.0
    call.x_MK[1, 20], call.x_MK[1, 200] = 25000.0, 25000.0
    call.codes_KN[20], call.codes_KN[200] = 15, 1
    pair = reduced(call, SimReconstruct)
    assert pair is not None
    assert len(pair.failing.inputs) == 2
    products = pair.failing.x_MK.double().T * (pair.failing.codes_KN.double() - 8).abs().amax(dim=1)[:, None]
    assert float(exact_of(pair.failing).abs().max()) < 65504 < float(products.max()) * 0.5
    failing, passing = (
        float((c.x_MK.double() @ (c.centred.double() * 0.5).clamp_min(0)).max()) for c in (pair.failing, pair.passing)
    )
    assert failing >= 65520 > passing > 65000, "the nearest call that passes has both inputs smaller by one factor"


def test_an_overflow_is_not_shrunk_to_where_float16_ends_anyway() -> None:
    """The exact answer of what is left is far from the border, as it was in the captured call."""
    call = random_call(3, 256, 16, 128)
    call.scales_GN[:] = 0.5
    call.x_MK[:] = 0.0
    call.x_MK[1, 20], call.x_MK[1, 200] = 25000.0, 24000.0
    call.codes_KN[20], call.codes_KN[200] = 15, 1
    pair = reduced(call, SimReconstruct)
    assert pair is not None
    assert float(exact_of(pair.failing).abs().max()) <= 65504 / 2
    assert bool(torch.isfinite(SimReconstruct().multiply(pair.passing.x_MK, packed(pair.passing, "l")).y_MN).all())


def test_a_fault_that_takes_two_rows_and_two_columns() -> None:
    """No output fails alone: rows and columns are found by delta debugging."""

    class Together(ExactKernel):
        def multiply(self, x_MK, linear):  # type: ignore[no-untyped-def]
            y_MN = super().multiply(x_MK, linear).y_MN.clone()
            if bool((y_MN != 0).any(dim=1).sum() >= 2) and bool((y_MN != 0).any(dim=0).sum() >= 2):
                y_MN[0, 0] = torch.inf
            return Product(y_MN, "exllama-fast")

    pair = reduced(random_call(6, 256, 48, 128), Together)
    assert pair is not None
    assert pair.failing.shape == (2, 128, 8)
    y_MN = exact_of(pair.failing)
    assert int((y_MN != 0).any(dim=1).sum()) == 2
    assert int((y_MN != 0).any(dim=0).sum()) == 2


def test_divergence_is_shrunk_too() -> None:
    """A kernel that adds the first product twice: the pair differs in whether that product is there."""

    class Doubling(ExactKernel):
        def multiply(self, x_MK, linear):  # type: ignore[no-untyped-def]
            twice = x_MK.clone()
            twice[:, 5] *= 2
            return Product(super().multiply(twice, linear).y_MN, "exllama-fast")

    call = random_call(3, 256, 16, 128)
    call.x_MK[:, 5] = 4.0
    pair = reduced(call, Doubling, fault=Fault("diverged", None))
    assert pair is not None
    assert [k for _, k in pair.failing.inputs] == [5]
    assert pair.passing.inputs == []
