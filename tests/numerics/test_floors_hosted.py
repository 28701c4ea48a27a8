"""Error models of auto_gptq's and GPTQModel's kernels against independent implementations of their arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.compare.refine import rounding
from gptq_diff.numerics import floors
from gptq_diff.numerics.partial_sums import own_rounding
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import pack_columns, pack_lines
from tests.numerics import plain_paths
from tests.numerics.test_floors import codes_and_scales, inputs

FACTOR = 3.0
SHAPES = [(64, 64), (64, 32), (256, 128), (1536, 128), (5120, 128)]


def closed(path, x_MK, w_KN):
    """The closed form's expected squared error of every row."""
    energy = (x_MK.astype(np.float64) ** 2) @ (w_KN**2).sum(axis=1)
    exact2 = (plain_paths.exact(x_MK, w_KN) ** 2).sum(axis=1)
    k, n = w_KN.shape
    return floors.expected_error2(
        path, floors.Rows(torch.from_numpy(energy), torch.from_numpy(exact2), k, n, 4)
    ).numpy()


def error2(got, x_MK, w_KN):
    assert np.isfinite(got).all()
    return ((got.astype(np.float64) - plain_paths.exact(x_MK, w_KN)) ** 2).sum(axis=1)


def v1_shares(x_MK, codes, scales, group, block):
    w_KN = codes * np.repeat(scales.astype(np.float64), group, axis=0)
    made = error2(plain_paths.exllama_v1(x_MK, codes, scales, group, block), x_MK, w_KN)
    w = torch.from_numpy(w_KN.astype(np.float32))
    sharp = own_rounding("exllama-v1", torch.from_numpy(x_MK.astype(np.float32)), w).by_row(w).numpy()
    floor = closed("exllama-v1", x_MK, w_KN)
    return np.sqrt(made / floor), np.sqrt(made / np.maximum(floor, sharp))


@pytest.mark.parametrize("block", [256, 384])
def test_on_ordinary_data_exllama_v1_errs_as_its_closed_floor_says(block):
    rng = np.random.default_rng(11)
    for (k, group), kind in itertools.product(SHAPES, ("sym", "asym")):
        share, _ = v1_shares(inputs("normal", 4, k, rng), *codes_and_scales(kind, k, 4, group, rng), block)
        assert share.min() > 0.4 and share.max() < 1.6, (k, group, kind)


@pytest.mark.parametrize("x_kind", ["positive", "massive", "first massive", "tiny", "cancelling"])
def test_no_healthy_data_reaches_the_factor_on_exllama_v1(x_kind):
    rng = np.random.default_rng(12)
    for (k, group), kind in itertools.product(SHAPES, ("sym", "asym", "equal", "mirror")):
        _, sharp = v1_shares(inputs(x_kind, 3, k, rng), *codes_and_scales(kind, k, 4, group, rng), 256)
        assert sharp.max() < 2.2, (k, group, kind)


def packed_asymmetric(k, n, group, rng, without=None):
    """A packed 4-bit linear with zeros 1 to 15, its codes, zeros and scales; without: a row whose weights are 0."""
    codes, zeros = rng.integers(0, 16, (k, n)), rng.integers(1, 16, (k // group, n))
    if without is not None:
        codes[without] = zeros[without // group]
    scales = (rng.uniform(0.5, 1.5, zeros.shape) * 0.01).astype(np.float16)
    spec = LayerSpec("q", k, n, 4, group, sym=False, desc_act=False, format="gptq", has_bias=False)
    linear = PackedLinear(
        spec, pack_columns(codes.tolist(), 4), pack_lines((zeros - 1).tolist(), 4), torch.from_numpy(scales), None, None
    )
    return linear, codes, zeros, scales


def int4pack_shares(x_MK, linear, codes, zeros, scales, group):
    w_KN = (codes - np.repeat(zeros, group, axis=0)) * np.repeat(scales.astype(np.float64), group, axis=0)
    made = error2(plain_paths.int4pack(x_MK, codes, zeros, scales, group), x_MK, w_KN)
    w, x = torch.from_numpy(w_KN.astype(np.float32)), torch.from_numpy(x_MK.astype(np.float32))
    sharp = rounding("gptqmodel-int4pack", x, w, linear, torch.arange(w.shape[1]))
    floor = closed("gptqmodel-int4pack", x_MK, w_KN)
    return np.sqrt(made / floor), np.sqrt(made / np.maximum(floor, sharp.by_row(w).numpy()))


@pytest.mark.parametrize("x_kind", ["normal", "positive", "massive", "tiny", "cancelling"])
def test_no_healthy_data_reaches_the_factor_on_int4pack(x_kind):
    rng = np.random.default_rng(13)
    for k, group in [(64, 32), (256, 64), (1024, 128)]:
        linear, *made = packed_asymmetric(k, 64, group, rng)
        _, sharp = int4pack_shares(inputs(x_kind, 5, k, rng), linear, *made, group)
        assert sharp.max() < 2.2, (k, group)


def test_rounded_zero_offsets_are_why_int4pack_needs_more_than_the_closed_form():
    """A massive input that meets zero weights should do nothing; the offset's rounding error lets it through."""
    rng = np.random.default_rng(14)
    linear, *made = packed_asymmetric(256, 64, 64, rng, without=85)
    closed_share, sharp = int4pack_shares(inputs("massive", 5, 256, rng), linear, *made, 64)
    assert closed_share.max() > FACTOR > sharp.max()


def test_with_zero_points_of_8_int4pack_errs_by_the_result_alone():
    rng = np.random.default_rng(15)
    linear, codes, zeros, scales = packed_asymmetric(256, 64, 64, rng)
    zeros = np.full_like(zeros, 8)
    sym = PackedLinear(linear.spec, linear.qweight, pack_lines((zeros - 1).tolist(), 4), linear.scales, None, None)
    share, _ = int4pack_shares(inputs("normal", 5, 256, rng), sym, codes, zeros, scales, 64)
    assert share.min() > 0.6 and share.max() < 1.4


def test_ignored_zero_points_stay_unexplained():
    """What GPTQModel's fused CPU module does with asymmetric weights: no rounding figure comes near it."""
    rng = np.random.default_rng(16)
    linear, codes, zeros, scales = packed_asymmetric(256, 64, 64, rng)
    x = inputs("normal", 5, 256, rng)
    w_KN = (codes - np.repeat(zeros, 64, axis=0)) * np.repeat(scales.astype(np.float64), 64, axis=0)
    wrong = error2(plain_paths.int4pack(x, codes, np.full_like(zeros, 8), scales, 64), x, w_KN)
    w = torch.from_numpy(w_KN.astype(np.float32))
    sharp = rounding("gptqmodel-int4pack", torch.from_numpy(x.astype(np.float32)), w, linear, torch.arange(64))
    assert np.sqrt(wrong / sharp.by_row(w).numpy()).min() > 100


@pytest.mark.parametrize("path", ["auto-gptq-torch", "gptqmodel-torch"])
def test_the_dequantising_paths_have_the_model_of_fp16(path):
    one = torch.ones(2, dtype=torch.float64)
    rows = floors.Rows(one, 2 * one, 128, 64, 4)
    assert torch.equal(floors.expected_error2(path, rows), floors.expected_error2("fp16", rows))
