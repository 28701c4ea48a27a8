"""Tiled products against the dequantised weight in float64, for every bit width and for shapes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.checkpoint.dequant import code_rows, dequantise, dequantise_columns, unscaled_codes
from gptq_diff.kernels import compiler, tiled
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.kernels.fp16 import Fp16Kernel
from gptq_diff.kernels.tiled import TiledWeight, products
from tests.kernels.fast_path_cases import draw

pytestmark = pytest.mark.skipif(not compiler.available(), reason="tiles need the compiled loops")

ROUNDING = 2.0**-24
SHAPES = [(1, 128, 8), (5, 96, 40), (6, 160, 256), (13, 256, 296), (37, 384, 320)]


def case_of(bits, shape, seed=0, **more):
    m, k, n = shape
    n = -(-n // 32) * 32 if bits in (2, 3) else n
    return draw(np.random.default_rng(seed), bits, 32, "ordinary", m=m, k=k, n=n, **more)


def limit(x_MK, w_KN):
    """What K roundings of float32 sums can err by at most, each output's own."""
    return (w_KN.shape[0] + 2) * ROUNDING * (x_MK.double().abs() @ w_KN.double().abs())


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_the_dequantised_weights(bits, shape, desc_act):
    """Every output lies within what float32 sums may err, whatever part of a tile or a panel it falls into."""
    case = case_of(bits, shape, desc_act=desc_act)
    linear, x_MK = case.linear(), torch.from_numpy(case.x).float() * 1.1
    w_KN = dequantise(linear)
    error_MN = (tiled.product(x_MK, TiledWeight.of(linear)).double() - x_MK.double() @ w_KN.double()).abs()
    assert bool((error_MN <= limit(x_MK, w_KN)).all())


@pytest.mark.parametrize("bits", [3, 4])
def test_weights_are_rounded_to_half_where_asked(bits):
    """With half_weight the product is that of the rounded weights, which differ from the exact ones by more."""
    case = case_of(bits, (7, 256, 64))
    linear, x_MK = case.linear(), torch.from_numpy(case.x).float()
    half_KN = dequantise(linear).half().float()
    y_MN = tiled.product(x_MK, TiledWeight.of(linear), half_weight=True).double()
    allowed = limit(x_MK, half_KN)
    assert bool(((y_MN - x_MK.double() @ half_KN.double()).abs() <= allowed).all())
    assert not bool(((y_MN - x_MK.double() @ dequantise(linear).double()).abs() <= allowed).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_judges_product_norms_and_squares(bits):
    """The better product errs less than float32 sums of K may; norms and squares are those of the weight."""
    case = case_of(bits, (9, 640, 288))
    linear, x_MK = case.linear(), torch.from_numpy(case.x).float() * 0.7
    w_KN, weight = dequantise(linear).double(), TiledWeight.of(linear)
    y_MN, norm2_K = tiled.product_and_norms(x_MK, weight)
    within_a_tile = 130 * ROUNDING * (x_MK.double().abs() @ w_KN.abs())
    assert bool(((y_MN.double() - x_MK.double() @ w_KN).abs() <= within_a_tile).all())
    assert torch.allclose(norm2_K, w_KN.square().sum(dim=1), rtol=1e-5)
    squares_MN = tiled.product_of_squares(x_MK.square(), weight).double()
    assert torch.allclose(squares_MN, x_MK.double().square() @ w_KN.square(), rtol=1e-4)


def test_more_rows_than_are_taken_at_a_time():
    """Rows of x beyond the first part come out as those before, and norms are counted once."""
    case = case_of(4, (3, 128, 64))
    weight = TiledWeight.of(case.linear())
    x_MK = torch.randn(2 * products.ROWS + 5, 128, generator=torch.Generator().manual_seed(3))
    whole_MN, norm2_K = tiled.product_and_norms(x_MK, weight)
    for m in (0, products.ROWS, len(x_MK) - 1):
        one_MN, one_norm2_K = tiled.product_and_norms(x_MK[m : m + 1], weight)
        assert torch.equal(whole_MN[m], one_MN[0]) and torch.equal(norm2_K, one_norm2_K)
    assert torch.equal(tiled.product(x_MK, weight)[-1], tiled.product(x_MK[-1:], weight)[0])


def test_left_out_columns_are_zero_whatever_their_scales_are():
    """A NaN or infinite scale spoils its own column, and none that is left out."""
    case = case_of(4, (4, 256, 64))
    case.scales[1, 5], case.scales[0, 9] = np.nan, np.inf
    linear, x_MK = case.linear(), torch.from_numpy(case.x).float()
    broken_N = torch.zeros(64, dtype=torch.bool)
    broken_N[[5, 9]] = True
    y_MN = tiled.product(x_MK, TiledWeight.of(linear, broken_N))
    assert bool((y_MN[:, broken_N] == 0).all()) and bool(torch.isfinite(y_MN).all())
    spoiled_MN = tiled.product(x_MK, TiledWeight.of(linear))
    assert bool(torch.isfinite(spoiled_MN[:, ~broken_N]).all()) and not torch.isfinite(spoiled_MN[:, broken_N]).any()


@pytest.mark.parametrize("step", [16, 128])
@pytest.mark.parametrize("shape", [(1, 96, 8), (7, 288, 136), (14, 384, 264)])
def test_largest_sums_of_every_tile(shape, step):
    """Each tile's largest running sum, sum alone and sum after it are those that adding up in float64 finds."""
    case = case_of(4, shape)
    linear, x_MK = case.linear(), torch.from_numpy(case.x).float()
    w_KN = dequantise(linear).double()
    found = tiled.largest_sums(x_MK, TiledWeight.of(linear), step)
    products_KMN = x_MK.double().T[:, :, None] * w_KN[:, None, :]
    running_KMN = products_KMN.cumsum(dim=0)
    for strip in range(-(-w_KN.shape[1] // 64)):
        columns = slice(64 * strip, 64 * strip + 64)
        for block in range(-(-len(w_KN) // 128)):
            first, last = 128 * block, min(128 * block + 128, len(w_KN))
            ends = [min(end, last) - 1 for end in range(first + step, last + step, step)]
            steps = running_KMN[ends][:, :, columns].abs().max()
            alone = products_KMN[first:last].sum(dim=0)[:, columns].abs().max()
            after = running_KMN[last - 1][:, columns].abs().max()
            told = [t[strip, block].double() for t in (found.steps_SB, found.alone_SB, found.after_SB)]
            assert torch.allclose(torch.stack(told), torch.stack([steps, alone, after]), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.booleans(), st.integers(0, 2**16), st.data())
def test_parts_of_a_weight_are_the_wholes(bits, desc_act, seed, data):
    """Some rows of codes, some columns of weights: the bits that the whole linear has there."""
    case = case_of(bits, (1, 96, 64), seed, desc_act=desc_act)
    linear = case.linear()
    columns_C = torch.tensor(data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=8)))
    assert torch.equal(dequantise_columns(linear, columns_C), dequantise(linear)[:, columns_C])
    first = 32 * data.draw(st.integers(0, 2))
    last = 32 * data.draw(st.integers(first // 32 + 1, 3))
    assert torch.equal(code_rows(linear, first, last), unscaled_codes(linear)[first:last])


def test_only_a_large_linear_is_tiled(monkeypatch):
    """A small weight stays whole, as before, and is kept; a large one goes through tiles in both kernels."""
    case = case_of(4, (3, 128, 64))
    linear, x_MK = case.linear(), torch.from_numpy(case.x)
    assert not tiled.can_tile(linear)
    small = [kernel().multiply(x_MK, linear).y_MN for kernel in (ExactKernel, Fp16Kernel)]
    monkeypatch.setattr(products, "LARGE", 1)
    assert tiled.can_tile(linear)
    seen = []
    monkeypatch.setattr(TiledWeight, "of", staticmethod(_noting(TiledWeight.of, seen)))
    exact, half = (kernel().multiply(x_MK, linear) for kernel in (ExactKernel, Fp16Kernel))
    assert len(seen) == 2 and (exact.path, half.path) == ("exact", "fp16")
    assert exact.y_MN.dtype == torch.float32 and half.y_MN.dtype == torch.float16
    assert torch.allclose(exact.y_MN, small[0], rtol=1e-5, atol=1e-7)
    assert torch.allclose(half.y_MN.float(), small[1].float(), rtol=2e-3, atol=1e-5)


def _noting(function, seen):
    def noted(*arguments):
        seen.append(arguments)
        return function(*arguments)

    return noted
