"""The sharper figures against plain float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.numerics.partial_sums import (
    alike,
    expected2,
    half_variance,
    half_weight_error2,
    own_rounding,
    running_sums2,
    single_variance,
    weighted_squares,
)


def pair(m=3, k=96, n=1100, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k)).astype(np.float32), (rng.standard_normal((k, n)) * 0.03).astype(np.float32)


def test_the_weights_rounding_is_what_it_does_to_the_product():
    x, w = pair()
    expected = (x.astype(np.float64) @ (w.astype(np.float16).astype(np.float64) - w)) ** 2
    got = half_weight_error2(torch.from_numpy(x), torch.from_numpy(w)).numpy()
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_running_sums_are_those_of_numpy_in_every_strip_of_columns():
    x, w = pair()
    sums = np.cumsum(x.astype(np.float64)[:, :, None] * w[None], axis=1)[:, 31::32]
    expected = (sums**2).sum(axis=1)
    got = running_sums2(torch.from_numpy(x), torch.from_numpy(w), 32).numpy()
    assert np.allclose(got, expected, rtol=1e-4)


def test_columns_that_are_multiples_of_each_other_are_one_kind_whatever_their_sign():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 64)).astype(np.float32)
    w = torch.from_numpy(np.stack([a, b, 3 * a, -a, 0.5 * b], axis=1))
    kinds = alike(w).tolist()
    assert kinds[0] == kinds[2] == kinds[3] != kinds[1] == kinds[4]


def test_a_column_of_zeros_is_a_kind_of_its_own():
    assert len(set(alike(torch.zeros(64, 3)).tolist())) == 1


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 8, 64])
def test_however_few_outputs_carry_the_error_three_times_the_figure_is_never_passed(outputs):
    rng = np.random.default_rng(2)
    errors = rng.standard_normal((200_000, outputs))
    variance = torch.ones(1, outputs, dtype=torch.float64)
    allowed = float(expected2(variance, torch.arange(outputs))[0])
    assert (errors**2).sum(axis=1).max() < 9 * allowed


def test_many_outputs_get_the_plain_sum_and_alike_ones_count_as_one():
    variance = torch.ones(1, 64, dtype=torch.float64)
    assert float(expected2(variance, torch.arange(64))[0]) == pytest.approx(64)
    alone = float(expected2(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))[0])
    same = float(expected2(variance, torch.zeros(64, dtype=torch.int64))[0])
    assert same == pytest.approx(64 * alone) and 3 < alone < 4


def test_no_variance_gives_no_figure():
    assert float(expected2(torch.zeros(1, 4, dtype=torch.float64), torch.arange(4))[0]) == 0.0


def test_a_path_without_a_sharper_figure_gives_none():
    x, w = (torch.from_numpy(t) for t in pair())
    assert own_rounding("exllama-fast", x, w) is None
    assert own_rounding("exact", x, w) is None


@pytest.mark.parametrize("path", ["fp16", "exllama-reconstruct"])
def test_rows_and_columns_are_two_sums_of_the_same_roundings(path):
    x, w = (torch.from_numpy(t) for t in pair(m=40, n=64))
    made = own_rounding(path, x, w)
    by_row, by_column = made.by_row(w), made.by_column(x, torch.full((40,), 2.0, dtype=torch.float64))
    assert float(by_column.sum()) == pytest.approx(2 * float(by_row.sum()), rel=1e-2)  # but for the raise


def test_the_variance_of_a_rounding_to_half_is_that_of_its_spacing():
    values = np.concatenate([np.geomspace(1e-7, 6e4, 400), [0.0, 1.0, 2.0, 1.9990234375, 2.0**-14, 2.0**-24]])
    halves = np.abs(values.astype(np.float16))
    expected = np.spacing(halves.astype(np.float16)).astype(np.float64) ** 2 / 12
    got = half_variance(torch.from_numpy(halves.astype(np.float32))).numpy()
    assert got == pytest.approx(expected, rel=1e-12)


def test_the_variance_of_a_rounding_to_single_is_that_of_its_spacing():
    values = np.concatenate([np.geomspace(1e-37, 1e38, 400), [1.0, 2.0, 1.99999988, 2.0**-126]])
    singles = values.astype(np.float32)
    expected = np.spacing(singles).astype(np.float64) ** 2 / 12
    assert single_variance(torch.from_numpy(-singles)).numpy() == pytest.approx(expected, rel=1e-12)
    assert not single_variance(torch.zeros(3)).any()


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513, 1500])
@pytest.mark.parametrize("k", [0, 1, 96, 1000])
def test_weighted_squares_are_those_of_the_whole_in_float64(rows, k):
    """Some rows at a time are what all at once are, and what numpy says, but for the order of the sums."""
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    weights = np.random.default_rng(1).random(k)
    got = weighted_squares(torch.from_numpy(x), torch.from_numpy(weights))
    assert got.shape == (rows,) and got.dtype == torch.float64
    assert got.numpy() == pytest.approx((x.astype(np.float64) ** 2) @ weights, rel=1e-12)
