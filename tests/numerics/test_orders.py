"""What float32 sums round in every order, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.numerics import orders
from gptq_diff.numerics.partial_sums import alike, expected2
from tests.numerics import plain_paths


def pair(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k)).astype(np.float32), (rng.standard_normal((k, n)) * 0.03).astype(np.float32)


def partial_sums(x_MK, w_KN, block):
    """Every sum that is rounded on the way, float64 [sums, M, N]: within the blocks, then of the blocks."""
    products = (x_MK.astype(np.float64)[:, :, None] * w_KN).transpose(1, 0, 2)
    parts = [products[k : k + block].cumsum(axis=0) for k in range(0, len(products), block)]
    joined = np.stack([part[-1] for part in parts]).cumsum(axis=0)[1:]
    return np.concatenate([*parts, joined])


def spacing2(sums):
    return np.spacing(np.abs(sums).astype(np.float32)).astype(np.float64) ** 2 / 12


@pytest.mark.parametrize("k", [8, 16, 200, 576, 896, 1536, 5120, 27648])
def test_the_orders_are_one_chain_equal_parts_and_blocks_that_libraries_use(k):
    found = orders.usual_blocks(k)
    assert found == sorted(set(found), reverse=True) and all(block > 0 and block % 16 == 0 for block in found)
    assert found[0] >= k > (found[1] if len(found) > 1 else 0)  # one chain, and one only
    assert k < 32 or any(2 * block - 16 < k + 16 <= 2 * block + 16 for block in found)  # halves
    assert all(block in found for block in (128, 384) if block < k)


def test_sums_after_every_sixteenth_row_are_numpys_and_a_shorter_rest_is_one_more():
    x, w = pair(3, 200, 5)
    sums = (x.astype(np.float64)[:, :, None] * w).cumsum(axis=1)
    expected = np.stack([np.zeros((3, 5)), *(sums[:, k - 1] for k in (*range(16, 200, 16), 200))])
    assert orders.sums_after(torch.from_numpy(x), torch.from_numpy(w)).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("block", [64, 128, 192, 384, 576])
def test_the_variance_is_that_of_all_sums_on_the_way(block):
    x, w = pair(40, 576, 50)
    after = orders.sums_after(torch.from_numpy(x), torch.from_numpy(w))
    got = orders.blocked_variance(after, block).numpy()
    every = spacing2(partial_sums(x, w, block)).sum(axis=0)
    assert got.mean() == pytest.approx(every.mean(), rel=0.15)  # a sixteenth stands for all: the last of 16 is largest
    assert (got / every).min() > 0.5 and (got / every).max() < 2.5
    sixteenth = np.concatenate(
        [partial_sums(x[:, k : k + block], w[k : k + block], block)[15::16] for k in range(0, 576, block)]
    )
    joined = partial_sums(x, w, block)[576:]
    assert got == pytest.approx(16 * spacing2(sixteenth).sum(axis=0) + spacing2(joined).sum(axis=0), rel=0.02)


@pytest.mark.parametrize("block", [96, 192, 288, 576])
def test_the_variance_is_what_float32_really_errs_by(block):
    x, w = pair(200, 576, 40, seed=1)
    error = plain_paths.single_in_blocks(x, w, block) - plain_paths.exact(x, w)
    variance = orders.blocked_variance(orders.sums_after(torch.from_numpy(x), torch.from_numpy(w)), block).numpy()
    measured = error**2 / variance
    assert 0.8 < measured.mean() < 1.25
    assert (measured > 9).mean() < 0.006  # 0.0027 for errors that are normally distributed


def test_a_block_that_starts_anew_rounds_more_than_a_chain_where_the_signs_of_the_halves_differ():
    """From 0 to -1 and back to 1 in one chain; from 0 to -1 and from 0 to 2 in two blocks of it."""
    k = 576
    w = torch.full((k, 1), 2.0 / k)
    w[: k // 2] *= -1
    w[k // 2 :] *= 2
    after = orders.sums_after(torch.full((1, k), 1.0), w)
    chain, halves = (float(orders.blocked_variance(after, block)) for block in (k, k // 2))
    assert halves > 2 * chain
    assert float(orders.SingleSums(torch.full((1, k), 1.0), w).by_row(w)) >= halves


@pytest.mark.parametrize(("m", "k", "n"), [(9, 200, 7), (12, 576, 5), (1, 64, 3)])
def test_a_rows_and_a_columns_figure_is_the_largest_of_any_one_order(m, k, n):
    x, w = (torch.from_numpy(t) for t in pair(m, k, n, seed=2))
    weight_M = torch.linspace(0.5, 2.0, m, dtype=torch.float64)
    made = orders.SingleSums(x, w)
    variances = [orders.blocked_variance(orders.sums_after(x, w), block) for block in orders.usual_blocks(k)]
    by_row = np.max([expected2(v, alike(w)).numpy() for v in variances], axis=0)
    by_column = np.max([expected2((v * weight_M[:, None]).T, alike(x.T)).numpy() for v in variances], axis=0)
    assert made.by_row(w).numpy() == pytest.approx(by_row, rel=1e-9)
    assert made.by_column(x, weight_M).numpy() == pytest.approx(by_column, rel=1e-9)


def test_taking_a_few_at_a_time_changes_nothing(monkeypatch):
    x, w = (torch.from_numpy(t) for t in pair(10, 200, 9, seed=3))
    made, weight_M = orders.SingleSums(x, w), torch.ones(10, dtype=torch.float64)
    whole = made.by_row(w), made.by_column(x, weight_M)
    for most in (1, 300, 5000):
        monkeypatch.setattr(orders, "AT_ONCE", most)
        assert made.by_row(w).numpy() == pytest.approx(whole[0].numpy(), rel=1e-6)
        assert made.by_column(x, weight_M).numpy() == pytest.approx(whole[1].numpy(), rel=1e-6)


def test_no_input_rounds_to_nothing():
    x, w = torch.zeros(8, 64), torch.ones(64, 3)
    made = orders.SingleSums(x, w)
    assert not made.by_row(w).any() and not made.by_column(x, torch.ones(8).double()).any()
