"""The largest partial lane sum: found by bounds, compared with looking at every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.kernels.fastpath import CHAINS, largest_lane_sum, prepare
from gptq_diff.kernels.sim_exllama import SimExllama
from tests.kernels.fast_path_cases import REGIMES, draw


def every_lane_sum(x, codes, bits):
    """Magnitudes of all partial sums, as exact integers of 2**-24: [(magnitude, row, column, rows of K)]."""
    chain = CHAINS[bits]
    stride = 2 if chain.lane else 1
    found = []
    for m in range(len(x)):
        scaled = [int(float(value) * 2**24) for value in x[m]]
        for n in range(codes.shape[1]):
            for k in range(0, x.shape[1], chain.word):
                for lane in range(stride):
                    rows, total = [], 0
                    for row in range(k + lane, k + chain.word, stride):
                        rows.append(row)
                        total += scaled[row] * int(codes[row, n])
                        found.append((abs(total), m, n, tuple(rows)))
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_larger_was_missed(bits, regime):
    """The value is the maximum over all partial sums, and its place is where that sum is."""
    case = draw(np.random.default_rng(bits), bits, 64, regime, m=3, k=128, n=5)
    codes, _ = case.unscaled
    found = largest_lane_sum(case.x, prepare(codes, case.scales, 64, bits))
    everything = every_lane_sum(case.x, codes, bits)
    assert abs(found.value) * 2**24 == max(everything)[0]
    assert (abs(found.value) * 2**24, found.row, found.column, found.rows) in everything
    assert found.k == found.rows[0] // CHAINS[bits].word * CHAINS[bits].word


def test_rows_that_are_not_finite_are_left_out():
    """NaN and infinities have no headroom; without a finite row there is no answer."""
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=2, k=128, n=8)
    case.x[0, 3] = np.inf
    codes, _ = case.unscaled
    weight = prepare(codes, case.scales, 64, 4)
    assert largest_lane_sum(case.x, weight).row == 1
    case.x[1, 3] = np.nan
    assert largest_lane_sum(case.x, weight) is None


def test_channels_are_those_of_x_with_desc_act():
    """A massive channel is named by its place in x, wherever sorting by group puts it."""
    case = draw(np.random.default_rng(1), 4, 64, "ordinary", m=2, k=128, n=8, desc_act=True)
    case.x[1, 77] = 3000
    found = SimExllama().largest_lane_sum(torch.from_numpy(case.x), case.linear())
    assert found.row == 1 and 77 in found.rows
