"""The stated noise floors against really measured errors of independent implementations of every path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gptq_diff.kernels.fastpath import fast_path_spread
from gptq_diff.numerics import floors
from gptq_diff.numerics.orders import SingleSums
from gptq_diff.numerics.partial_sums import alike, expected2, own_rounding, running_sums2
from tests.numerics import plain_paths

FACTOR = 3.0
COLUMNS = 64


def codes_and_scales(kind, k, bits, group, rng):
    """(code - zero [K, N], float16 scales [G, N], group size); kinds: sym, asym, equal codes in groups, mirrored."""
    group = k if group == -1 else min(group, k)
    codes = rng.integers(0, 2**bits, (k, COLUMNS))
    zeros = np.full((k // group, COLUMNS), 2 ** (bits - 1))
    if kind == "asym":
        zeros = rng.integers(1, 2**bits, zeros.shape)
    if kind == "equal":
        codes = np.repeat(rng.integers(0, 2**bits, zeros.shape), group, axis=0)
    if kind == "mirror":
        codes[k // 2 :] = codes[: k // 2]
    scales = (rng.uniform(0.5, 1.5, zeros.shape) * 0.02 / 2 ** (bits - 1)).astype(np.float16)
    return (codes - np.repeat(zeros, group, axis=0)).astype(np.int16), scales, group


def inputs(kind, m, k, rng):
    x = rng.standard_normal((m, k))
    if kind == "positive":
        x = abs(x)
    if kind == "massive":
        x[:, k // 3] = 2000
    if kind == "first massive":
        x[:, 3] = 300
    if kind == "tiny":
        x *= 1e-5
    if kind == "cancelling":
        x = abs(x)
        x[:, k // 2 :] = -x[:, : k // 2]
    return x.astype(np.float16)


def shares(path, x_MK, codes_KN, scales_GN, group, bits):
    """(error / closed floor, error / sharpened floor), both [M]."""
    w_KN = codes_KN * np.repeat(scales_GN.astype(np.float64), group, axis=0)
    exact = plain_paths.exact(x_MK, w_KN)
    run = {"exact": plain_paths.single, "fp16": plain_paths.fp16, "exllama-reconstruct": plain_paths.reconstruct}
    fast = path == "exllama-fast"
    got = plain_paths.fast(x_MK, codes_KN, scales_GN, group, bits) if fast else run[path](x_MK, w_KN)
    assert np.isfinite(got).all()
    error2 = ((got.astype(np.float64) - exact) ** 2).sum(axis=1)
    energy = (x_MK.astype(np.float64) ** 2) @ (w_KN**2).sum(axis=1)
    k, n = w_KN.shape
    rows = floors.Rows(torch.from_numpy(energy), torch.from_numpy((exact**2).sum(axis=1)), k, n, bits)
    closed = floors.expected_error2(path, rows).numpy()
    return np.sqrt(error2 / closed), np.sqrt(
        error2 / np.maximum(closed, _sharp(path, x_MK, w_KN, codes_KN, scales_GN, group, bits))
    )


def _sharp(path, x_MK, w_KN, codes_KN, scales_GN, group, bits):
    w = torch.from_numpy(w_KN.astype(np.float32))
    if path == "exllama-fast":
        _, rms_MN = fast_path_spread(x_MK, codes_KN, scales_GN, group, bits, "random")
        ascending = floors.HALF_RMS**2 * running_sums2(torch.from_numpy(x_MK.astype(np.float32)), w, 128)
        return expected2(torch.from_numpy(rms_MN.astype(np.float64) ** 2) + ascending, alike(w)).numpy()
    x = torch.from_numpy(x_MK.astype(np.float32))
    return (SingleSums(x, w) if path == "exact" else own_rounding(path, x, w)).by_row(w).numpy()


PATHS = ("exact", "fp16", "exllama-fast", "exllama-reconstruct")
SHAPES = [(64, -1), (64, 32), (256, 128), (1536, 128), (1536, -1), (5120, 128)]


@pytest.mark.parametrize("path", PATHS)
def test_on_ordinary_data_the_closed_floor_is_the_measured_error(path):
    rng = np.random.default_rng(1)
    for (k, group), bits, kind, m in itertools.product(SHAPES, (2, 3, 4, 8), ("sym", "asym"), (1, 40)):
        if k > 1000 and m > 1:
            continue
        made = codes_and_scales(kind, k, bits, group, rng)
        closed, _ = shares(path, inputs("normal", m, k, rng), *made, bits)
        assert closed.min() > 0.3 and closed.max() < 1.9, (k, group, bits, kind)
        assert 0.3 < np.sqrt((closed**2).mean()) < 1.5, (k, group, bits, kind)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("x_kind", ["positive", "massive", "first massive", "tiny", "cancelling"])
def test_no_healthy_data_reaches_the_factor_once_the_floor_is_sharpened(path, x_kind):
    rng = np.random.default_rng(2)
    for (k, group), bits, kind in itertools.product(SHAPES, (2, 3, 4, 8), ("sym", "asym", "equal", "mirror")):
        if k == 5120 and bits in (3, 8):
            continue  # seconds each
        m = 6 if k < 1000 else 1
        made = codes_and_scales(kind, k, bits, group, rng)
        _, sharp = shares(path, inputs(x_kind, m, k, rng), *made, bits)
        assert sharp.max() < 2.2, (k, group, bits, kind)


def test_equal_codes_in_a_whole_column_are_explained_although_few_outputs_are_independent():
    rng = np.random.default_rng(3)
    for _ in range(30):
        made = codes_and_scales("equal", 64, 2, -1, rng)
        _, sharp = shares("exllama-fast", inputs("normal", 6, 64, rng), *made, 2)
        assert sharp.max() < FACTOR


def test_cancelling_halves_are_why_the_closed_form_needs_sharpening():
    rng = np.random.default_rng(4)
    made = codes_and_scales("mirror", 5120, 2, -1, rng)
    for path in ("exact", "exllama-fast", "exllama-reconstruct"):
        closed, sharp = shares(path, inputs("cancelling", 1, 5120, rng), *made, 2)
        assert closed.max() > FACTOR > sharp.max(), path


def test_the_law_of_partial_sums_is_exact_over_all_orders():
    """For every subset size, the mean over random orders of |sum of t products|^2 is what Rows.sums2 says."""
    rng = np.random.default_rng(5)
    products = rng.standard_normal((12, 5)) + 0.4  # K=12 products of an N=5 output
    energy, exact2 = (products**2).sum(), (products.sum(axis=0) ** 2).sum()
    rows = floors.Rows(torch.tensor([energy]), torch.tensor([exact2]), 12, 5, 4)
    for t in (1, 2, 5, 11, 12):
        subsets = itertools.combinations(range(12), t)
        mean = np.mean([(products[list(s)].sum(axis=0) ** 2).sum() for s in subsets])
        assert float(rows.sums2(np.array([float(t)]))[0]) == pytest.approx(mean, rel=1e-12)


def test_the_relative_error_of_rounding_to_half_is_measured_right():
    values = 2.0 ** np.random.default_rng(6).uniform(-3, 3, 400_000)
    relative = (values.astype(np.float16).astype(np.float64) - values) / values
    assert np.sqrt((relative**2).mean()) == pytest.approx(floors.HALF_RMS, rel=0.01)


FAST, RECONSTRUCT = "exllama-fast", "exllama-reconstruct"


@pytest.mark.parametrize(
    ("k", "path", "measured"),
    [(5120, FAST, 1.0e-3), (27648, FAST, 2.2e-3), (5120, RECONSTRUCT, 2.6e-3), (27648, RECONSTRUCT, 6e-3)],
)
def test_the_floors_are_what_an_h100_measured_on_random_inputs(k, path, measured):
    """facts.md, section 1: relative l2 errors of vLLM 0.20.2's op; random signs, so |y|^2 = E."""
    one = torch.ones(1, dtype=torch.float64)
    floor2 = floors.expected_error2(path, floors.Rows(one, one, k, 1, 4))
    assert float(floor2.sqrt()) == pytest.approx(measured, rel=0.1)


def test_a_path_without_a_model_is_an_error_and_not_a_guess():
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(KeyError):
        floors.expected_error2("no such path", floors.Rows(one, one, 64, 1, 4))
