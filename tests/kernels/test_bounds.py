"""The bounds of targeted mode are never below what the simulators, written down independently, give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.compare.judge import CapturedCall, judge_layer
from gptq_diff.compare.weight import Weight
from gptq_diff.kernels import compiler
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.fastpath import bounds, plain, prepare
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.tiled import TiledWeight, watched_product
from gptq_diff.numerics.fp16 import HALF_MIN_ULP, ulp_half
from gptq_diff.records import BOUNDED
from tests.kernels.fast_path_cases import REGIMES, draw

pytestmark = pytest.mark.skipif(not compiler.available(), reason="targeted mode needs the compiled loops")

cases = st.builds(
    lambda seed, regime, k, group, version: draw(
        np.random.default_rng(seed), 4, group, regime, m=3, k=k, n=8, version=version
    ),
    st.integers(0, 2**20), st.sampled_from(REGIMES), st.sampled_from([128, 256, 384]), st.sampled_from([32, 64, 128]),
    st.sampled_from(["gptq", "gptq_v2"]),
)  # fmt: skip


def finite(case):
    """The same case with every x finite."""
    case.x[~np.isfinite(case.x)] = 1.0
    return case


def watched(case):
    x_MK = torch.from_numpy(case.x)
    return x_MK, watched_product(x_MK, TiledWeight.of(case.linear()))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_no_lane_holds_more_than_its_bound(case):
    """The scalar implementation's largest partial sum of every row, infinite ones included, lies below L."""
    case = finite(case)
    bound_M = bounds.lane_bound(torch.from_numpy(case.x), bounds.largest_code(case.linear())).numpy()
    _, _, largest_MN = case.scalar()
    largest_M = largest_MN.max(axis=1)
    overflowed_M = ~np.isfinite(largest_M)
    assert (bound_M[~overflowed_M] >= largest_M[~overflowed_M]).all()
    assert (bound_M[overflowed_M] >= 65520).all()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_no_block_and_no_partial_output_passes_its_bound(case):
    """Where no lane overflows, every block's result and every partial output lie below the bound, or it is no proof."""
    case = finite(case)
    linear = case.linear()
    x_MK, seen = watched(case)
    code = bounds.largest_code(linear)
    bound_M = bounds.output_bound(x_MK, code, linear, seen.top_M).numpy()
    lanes_hold_M = (bounds.lane_bound(x_MK, code) < 65520).numpy()
    _, blocks_BMN, _ = case.scalar()
    with np.errstate(over="ignore", invalid="ignore"):
        partial_BMN = np.empty_like(blocks_BMN)
        total_MN = np.zeros_like(blocks_BMN[0])
        for b, block_MN in enumerate(blocks_BMN):
            total_MN = (total_MN.astype(np.float32) + block_MN.astype(np.float32)).astype(np.float16)
            partial_BMN[b] = total_MN
    proved_M = lanes_hold_M & (bound_M < 65504)
    for sums_BMN in (blocks_BMN, partial_BMN):
        largest_M = np.abs(sums_BMN[:, proved_M].astype(np.float64)).max(axis=(0, 2), initial=0.0)
        assert (largest_M <= bound_M[proved_M]).all()


def expected_squares(case):
    """float64 [M, N]: ulp^2 / 12 of everything that the plain simulation rounds, times its scale; ascending blocks."""
    linear = case.linear()
    codes_KN = (case.codes.astype(np.int64) - case.zeros[case.g_idx]).astype(np.int16)
    weight = prepare(codes_KN, case.scales, case.group_size, 4)
    total_MN = np.zeros((len(case.x), linear.spec.out_features))

    def watch(rounded_MN, factor_N, step):
        unit_MN = ulp_half(rounded_MN).astype(np.float64)
        if step is plain.Step.SUMMED:  # sums of multiples of 2^-24 are exact where halves are spaced so
            unit_MN = np.where(unit_MN == HALF_MIN_ULP, 0.0, unit_MN)
        total_MN[...] += (unit_MN * factor_N) ** 2 / 12

    blocks_BMN = plain.block_sums(case.x, weight, watch)
    running_MN = blocks_BMN[0]
    with np.errstate(over="ignore", invalid="ignore"):
        for block_MN in blocks_BMN[1:]:
            running_MN = (running_MN.astype(np.float32) + block_MN.astype(np.float32)).astype(np.float16)
            unit_MN = ulp_half(running_MN).astype(np.float64)
            total_MN += np.where(unit_MN == HALF_MIN_ULP, 0.0, unit_MN) ** 2 / 12
    return total_MN


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(0, 2**16))
def test_rounding_is_never_expected_beyond_its_bound(case, seed):
    """V of every row, and of every column under any weights, covers what each rounding of the simulation may err."""
    case = finite(case)
    x_MK, seen = watched(case)
    squares_MN = expected_squares(case)
    energy_M = x_MK.double().square() @ seen.norm2_K
    bound_M = bounds.row_error2(seen, energy_M, x_MK.shape[1]).numpy()
    rows_M = np.isfinite(squares_MN).all(axis=1)
    assert (squares_MN[rows_M].sum(axis=1) <= bound_M[rows_M]).all()
    weight_M = torch.from_numpy(np.random.default_rng(seed).random(len(case.x)) * rows_M)
    w2_KN = dequantise(case.linear()).double().square()
    energy_N = weight_M @ (x_MK.double().square() @ w2_KN)
    bound_N = bounds.column_error2(seen, energy_N, weight_M, x_MK.shape[1]).numpy()
    assert (weight_M.numpy()[rows_M] @ squares_MN[rows_M] <= bound_N).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(REGIMES), st.sampled_from([3, 9]))
def test_what_is_proved_safe_is_healthy_when_simulated(seed, regime, rows):
    """A call that targeted mode passes would have been finite, and judged healthy, had it been simulated."""
    case = finite(draw(np.random.default_rng(seed), 4, 64, regime, m=rows, k=256, n=16))
    linear, x_MK = case.linear(), torch.from_numpy(case.x)
    exact_MN = bounds.bounded_product(x_MK, linear)
    if exact_MN is None:
        return
    y_MN = SimExllama().multiply(x_MK, linear).y_MN
    assert bool(torch.isfinite(y_MN).all())
    nothing_N = torch.zeros(16, dtype=torch.bool)
    call = CapturedCall(0, 0, "exllama-fast", x_MK, y_MN, None)
    (found,) = judge_layer(Weight(linear.spec, dequantise(linear), nothing_N, nothing_N, linear), [call])
    assert found.kind == "ok"
    assert torch.allclose(exact_MN.double(), x_MK.double() @ dequantise(linear).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["sim-exllama", "sim-gptq"])
def test_what_overflows_is_simulated(seed, name):
    """An input that overflows a lane gives the simulator's bits and its path; an ordinary one the exact answer."""
    broken = draw(np.random.default_rng(seed), 4, 64, "overflow", m=4, k=256, n=16)
    whole = make_kernel(name).multiply(torch.from_numpy(broken.x), broken.linear())
    targeted = make_kernel(f"{name}-targeted").multiply(torch.from_numpy(broken.x), broken.linear())
    assert targeted.path == whole.path == "exllama-fast" and not torch.isfinite(whole.y_MN).all()
    assert torch.equal(targeted.y_MN.view(torch.int16), whole.y_MN.view(torch.int16))
    sound = draw(np.random.default_rng(seed), 4, 64, "ordinary", m=4, k=1024, n=64)
    product = make_kernel(f"{name}-targeted").multiply(torch.from_numpy(sound.x), sound.linear())
    exact_MN = torch.from_numpy(sound.x).double() @ dequantise(sound.linear()).double()
    assert product.path == BOUNDED and product.y_MN.dtype == torch.float16
    assert torch.allclose(product.y_MN.double(), exact_MN, rtol=2e-3, atol=1e-6)


def test_many_rows_take_the_path_that_vllm_takes():
    """sim-gptq reconstructs from 51 rows on, targeted or not; sim-exllama bounds them still."""
    case = draw(np.random.default_rng(1), 4, 64, "ordinary", m=51, k=1024, n=64)
    x_MK, linear = torch.from_numpy(case.x), case.linear()
    assert make_kernel("sim-gptq-targeted").multiply(x_MK, linear).path == "exllama-reconstruct"
    assert make_kernel("sim-gptq-targeted").multiply(x_MK[:50], linear).path == BOUNDED
    assert make_kernel("sim-exllama-targeted").multiply(x_MK, linear).path == BOUNDED


def test_lost_rows_stay_lost_and_bound_nothing():
    """A row with NaN or infinity gives NaN throughout; the others are as without it."""
    case = draw(np.random.default_rng(2), 4, 64, "ordinary", m=4, k=1024, n=64)
    x_MK, linear = torch.from_numpy(case.x), case.linear()
    alone_MN = bounds.bounded_product(x_MK[[0, 2]], linear)
    x_MK[1, 5], x_MK[3, 7] = float("inf"), float("nan")
    y_MN = bounds.bounded_product(x_MK, linear)
    assert alone_MN is not None and y_MN is not None
    assert bool(y_MN[[1, 3]].isnan().all()) and torch.equal(y_MN[[0, 2]], alone_MN)


def test_only_what_the_proof_speaks_of_is_bounded():
    """Other bit widths, an order of rows of its own, broken scales and scales beyond float16 are simulated."""
    sound = draw(np.random.default_rng(3), 4, 64, "ordinary", m=2, k=256, n=16).linear()
    assert bounds.can_bound(sound)
    assert not bounds.can_bound(draw(np.random.default_rng(3), 8, 64, "ordinary", m=2, k=256, n=16).linear())
    ordered = draw(np.random.default_rng(3), 4, 64, "ordinary", m=2, k=256, n=16, desc_act=True)
    assert not bounds.can_bound(ordered.linear())
    scales_GN = sound.scales.clone()
    scales_GN[0, 0] = float("nan")
    assert not bounds.can_bound(dataclasses.replace(sound, scales=scales_GN))
    wide_GN = torch.full(sound.scales.shape, 1e-3).to(torch.bfloat16)
    assert bounds.can_bound(dataclasses.replace(sound, scales=wide_GN))
    wide_GN[0, 0] = 1e-9
    assert not bounds.can_bound(dataclasses.replace(sound, scales=wide_GN))
