"""The nearest sum of every arithmetic: found by bounds and pieces, compared with adding up every one by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.diagnose.headroom import arithmetics_of, bits_left, every_arithmetic, measure, scaled, share_of
from gptq_diff.kernels.tiled import products
from tests.devices import DEVICES, in_force
from tests.kernels.fast_path_cases import draw

WORD = {2: 16, 3: 32, 4: 8, 8: 8}


def every_sum(x, codes, weights, order, bits):
    """{arithmetic: [(magnitude, row, column, channels)]} correctly rounded, by the kernels' own order of steps."""
    found = {name: [] for name in ("lane", "block", "accumulator", "unscaled-sum", "result")}
    inputs, channels = x.shape[1], list(order)
    for m in range(len(x)):
        values = [float(v) for v in x[m]]
        for n in range(codes.shape[1]):
            unscaled = [values[k] * int(codes[k, n]) for k in range(inputs)]
            scaled = [values[k] * float(weights[k, n]) for k in range(inputs)]

            def add(name, products, rows, m=m, n=n):
                found[name].append((abs(math.fsum(products[k] for k in rows)), m, n, tuple(rows)))

            for start in range(0, inputs, WORD[bits]):
                for lane in (0, 1):
                    rows = channels[start + lane : start + WORD[bits] : 2]
                    for end in range(1, len(rows) + 1):
                        if bits != 8:
                            add("lane", unscaled, rows[:end])
                if bits in (2, 3):
                    add("lane", unscaled, channels[start : start + WORD[bits]])
                if bits == 8:
                    add("block", scaled, channels[start : start + 8])
            step = {2: 16, 3: 16, 4: 128, 8: 8}[bits]
            for block in range(0, inputs, 128):
                last = min(block + 128, inputs)
                for end in range(block + step, last + 1, step):
                    add("block", scaled, channels[block:end])
                add("block", scaled, channels[block:last])
                add("block", scaled, channels[:last])
            for end in range(16, inputs + 1, 16):
                add("accumulator", scaled, range(end))
            add("unscaled-sum", unscaled, range(inputs))
            add("result", scaled, range(inputs))
    return found


@pytest.fixture(params=["whole", "tiled", *DEVICES])
def unpacked(request, monkeypatch):
    """Linears are held whole, as small ones are, or taken tile by tile, as large ones are, or a GPU makes the sums."""
    if request.param == "tiled":
        monkeypatch.setattr(products, "LARGE", 1)
    if request.param not in DEVICES:
        yield
        return

    def with_a_gpu(x_MK, share, wanted):
        with in_force(request.param) as device:
            there = share_of(share.linear.to(device)).rows(share.first, share.count)
            return measure(x_MK, share, wanted, there)

    monkeypatch.setattr(scaled, "TOGETHER", 128 * 2 * 8)  # several pieces of K
    with in_force(request.param):
        pass  # skipped here where there is none
    monkeypatch.setitem(globals(), "measured", with_a_gpu)
    yield


measured = measure


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("regime", ["ordinary", "overflow", "wild"])
def test_nothing_larger_was_missed(bits, regime, desc_act):
    """Of every arithmetic the largest sum's size is found, and the place that is told holds a sum of that size."""
    case = draw(np.random.default_rng(bits), bits, 64, regime, m=2, k=256, n=32, desc_act=desc_act)
    linear = case.linear()
    weights = dequantise(linear, torch.float64).numpy()
    codes = case.codes.astype(int) - case.zeros[case.g_idx]
    everything = every_sum(case.x, codes, weights, case.unscaled[1], bits)
    found = measured(torch.from_numpy(case.x), share_of(linear), tuple(everything))
    assert set(found) == {name for name, sums in everything.items() if sums}
    for name, near in found.items():
        largest = max(everything[name])[0]
        assert abs(near.value) == pytest.approx(float(largest), rel=1e-5)
        assert near.bits == pytest.approx(math.log2(65504 / largest), abs=1e-4)
        sums = [rows for size, m, n, rows in everything[name] if (m, n) == (near.row, near.column)
                and len(rows) == near.terms and float(size) == pytest.approx(abs(near.value), rel=1e-6)]  # fmt: skip
        assert sums, name
        factors = codes if name in ("lane", "unscaled-sum") else weights
        assert near.channel in sums[0]
        assert near.activation == float(case.x[near.row, near.channel])
        assert near.weight == pytest.approx(float(factors[near.channel, near.column]), rel=1e-6)
        products = {k: float(case.x[near.row, k]) * float(factors[k, near.column]) for k in sums[0]}
        sign = math.copysign(1, near.value)
        assert sign * near.activation * near.weight == pytest.approx(max(sign * p for p in products.values()), rel=1e-6)


ROWS = 3 * scaled.ROWS + scaled.MOST_ROWS + 20
"""So many that they are taken in pieces of every size."""


@pytest.mark.usefixtures("unpacked")
def test_long_rows_first_loses_none():
    """Of more rows than are taken together, whichever order they come in, the largest sum is the same."""
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=ROWS, k=128, n=16)
    case.x[::7] *= 40
    share, names = share_of(case.linear()), ("block", "accumulator", "result")
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    x_MK = torch.from_numpy(case.x)
    one_by_one = [measured(x_MK[m : m + 1], share, names) for m in range(ROWS)]
    for name, near in measured(x_MK[rows], share, names).items():
        assert near.bits == pytest.approx(min(found[name].bits for found in one_by_one), abs=1e-5)
        assert one_by_one[int(rows[near.row])][name].bits == pytest.approx(near.bits, abs=1e-5)


@pytest.mark.usefixtures("unpacked")
def test_rows_all_alike_in_length_are_all_looked_at():
    """Where no bound lets any be left out: the largest sum lies in the very last rows that are taken."""
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=ROWS, k=128, n=16)
    share, x_MK = share_of(case.linear()), torch.from_numpy(case.x).float()
    x_MK = (x_MK / torch.linalg.vector_norm(x_MK, dim=1, keepdim=True)).half()
    w_KN = dequantise(case.linear())
    best = int(torch.linalg.vector_norm(w_KN, dim=0).argmax())
    for at in (0, scaled.ROWS, 3 * scaled.ROWS, ROWS - 1):
        rows = x_MK.clone()
        rows[at] = 0.9 * w_KN[:, best] / torch.linalg.vector_norm(w_KN[:, best])
        near = measured(rows, share, ("result",))["result"]
        assert (near.row, near.column) == (at, best)


@pytest.mark.usefixtures("unpacked")
def test_rows_that_are_not_finite_are_left_out():
    """NaN, infinities and what float16 makes infinite have no headroom; rows keep their numbers."""
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=4, k=128, n=8)
    x_MK = torch.from_numpy(case.x).float()
    x_MK[0, 3], x_MK[1, 5], x_MK[2, 7] = math.inf, math.nan, 70000.0
    share = share_of(case.linear())
    assert {near.row for near in measured(x_MK, share, ("lane", "result")).values()} == {3}
    x_MK[3, 0] = math.nan
    assert measured(x_MK, share, ("lane", "result")) == {}
    assert measured(torch.zeros(2, 128), share, ("lane", "accumulator", "unscaled-sum", "result")) == {}


@pytest.mark.usefixtures("unpacked")
def test_a_share_of_the_rows_is_a_linear_of_its_own():
    """A rank's rows of W give what a checkpoint of those rows alone gives."""
    case = draw(np.random.default_rng(3), 4, 64, "ordinary", m=2, k=256, n=8)
    part = replace(
        case, codes=case.codes[128:], zeros=case.zeros[2:], scales=case.scales[2:], g_idx=case.g_idx[128:] - 2
    )
    names = ("lane", "block", "accumulator", "result")
    x_MK = torch.from_numpy(case.x[:, 128:].copy())
    assert measured(x_MK, share_of(case.linear()).rows(128, 128), names) == measured(
        x_MK, share_of(part.linear()), names
    )


@pytest.mark.usefixtures("unpacked")
def test_columns_with_broken_scales_are_left_out():
    """A NaN scale is no overflow: the other columns are told."""
    case = draw(np.random.default_rng(4), 4, 64, "ordinary", m=2, k=128, n=8)
    case.scales[0, 5], case.scales[1, 2] = np.nan, np.inf
    found = measured(torch.from_numpy(case.x), share_of(case.linear()), ("accumulator", "result"))
    assert all(near.column not in (2, 5) and math.isfinite(near.value) for near in found.values())


def test_which_sums_a_path_holds():
    """exllama's paths as their sources have them; a kernel with float32 sums has the result alone; Marlin by groups."""
    spec = draw(np.random.default_rng(0), 4, 64, "ordinary").linear().spec
    assert arithmetics_of("exllama-fast", spec) == ("lane", "block", "result")
    assert arithmetics_of("exllama-reconstruct", spec) == ("accumulator", "result")
    assert arithmetics_of("marlin", spec) == arithmetics_of("fp16", spec) == ("result",)
    whole = replace(spec, group_size=128, sym=True)
    assert arithmetics_of("marlin", whole) == ("unscaled-sum", "result")
    assert "lane" not in arithmetics_of("exllama-fast", replace(spec, bits=8))
    assert every_arithmetic(replace(spec, group_size=48)) == ("accumulator", "result")  # no fast path for such groups


def test_bits_left():
    """A sum of 65504 has none left, a quarter of it two, twice it is one bit beyond; nothing of zero or infinity."""
    assert [bits_left(v) for v in (65504.0, -16376.0, 131008.0)] == [0.0, 2.0, -1.0]
    assert [bits_left(v) for v in (0.0, math.inf, math.nan)] == [None, None, None]
