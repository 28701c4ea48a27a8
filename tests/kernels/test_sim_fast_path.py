"""The simulated fast path against exact rational arithmetic, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.kernels import compiler
from gptq_diff.kernels.fastpath import fast_path_spread, run_packed, simulate_fast_path
from gptq_diff.kernels.fastpath import simulate as simulate_module
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.tiled import TiledWeight, products
from tests.kernels.fast_path_cases import REGIMES, Case, assert_same_bits, draw

BITS = (2, 3, 4, 8)


def simulate(case, per_block=False):
    codes, order = case.unscaled
    return simulate_fast_path(case.x[:, order], codes, case.scales, case.group_size, case.bits, per_block)


@pytest.mark.parametrize("bits", BITS)
def test_every_value_has_the_bits_of_exact_arithmetic(bits):
    """All groups and regimes; enough values near overflow and enough subnormal ones, which is counted."""
    total = huge = finite = subnormal = 0
    for g, group_size in enumerate((32, 64, 128, 256)):
        for r, regime in enumerate(REGIMES):
            rng = np.random.default_rng([bits, g, r])
            case = draw(rng, bits, group_size, regime, m=2, k=256, n=6, desc_act=bool(r % 2), sym=bool(g % 2))
            y, blocks, largest = case.scalar()
            assert_same_bits(simulate(case), y)
            assert_same_bits(simulate(case, per_block=True), blocks)
            total += y.size
            huge += int((largest > 60000).sum())
            finite += int(((largest > 60000) & np.isfinite(y)).sum())
            subnormal += int(((y != 0) & (np.abs(y) < 2.0**-14)).sum())
    assert huge >= total / 10, f"{huge} of {total} values come from a partial sum above 60000"
    assert finite > 0, f"none of these {huge} is finite"
    assert finite == huge if bits == 8 else finite < huge, f"{finite} of these {huge} are finite"
    assert subnormal >= total / 10, f"{subnormal} of {total} values are subnormal"


@pytest.mark.skipif(not compiler.available(), reason="packed weights are simulated by the compiled loops alone")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("group_size", [32, 128, 256])
def test_a_packed_weight_gives_the_same_bits(group_size, regime):
    """Taken as it lies in the checkpoint, tile by tile, the weight gives exact arithmetic's bits as well."""
    case = draw(np.random.default_rng(group_size), 4, group_size, regime, m=2, k=256, n=8)
    assert_same_bits(run_packed(case.x, TiledWeight.of(case.linear())), case.scalar()[0])


@pytest.mark.skipif(not compiler.available(), reason="packed weights are simulated by the compiled loops alone")
@pytest.mark.parametrize("columns", [8, 264, 520])
def test_a_packed_weight_gives_what_a_prepared_one_does(columns, monkeypatch):
    """Bands that end early, a K of no whole tiles, rows with NaN and infinity; and a large linear is taken so."""
    case = draw(np.random.default_rng(columns), 4, 32, "wild", m=7, k=416, n=columns)
    case.x[2, 5], case.x[4, 9] = np.inf, np.nan
    prepared = SimExllama().multiply(torch.from_numpy(case.x), case.linear()).y_MN.numpy()
    assert_same_bits(run_packed(case.x, TiledWeight.of(case.linear()), threads=2), prepared)
    monkeypatch.setattr(products, "LARGE", 1)
    kernel = SimExllama()
    assert_same_bits(kernel.multiply(torch.from_numpy(case.x), case.linear()).y_MN.numpy(), prepared)
    assert kernel._weights.used == 0
    ordered = draw(np.random.default_rng(columns), 4, 32, "wild", m=3, k=128, n=8, desc_act=True)
    assert_same_bits(kernel.multiply(torch.from_numpy(ordered.x), ordered.linear()).y_MN.numpy(), ordered.scalar()[0])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_every_stored_zero(bits, version):
    """Each of the 2**bits stored zeros (v1: one more is subtracted, up to 2**bits), a column each, extreme codes."""
    rng = np.random.default_rng(bits)
    n = 2**bits
    zeros = np.arange(n)[None] + (1 if version == "gptq" else 0)
    codes = np.where(rng.random((32, n)) < 0.3, rng.choice([0, n - 1], (32, n)), rng.integers(0, n, (32, n)))
    x = (rng.standard_normal((1, 32)) * 3).astype(np.float16)
    scales = (rng.random((1, n)) * 0.05).astype(np.float16)
    case = Case(x, codes, zeros, scales, np.zeros(32, int), 32, bits, version)
    assert_same_bits(simulate(case), case.scalar()[0])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from([32, 64, 128, 160]),
    regime=st.sampled_from(REGIMES),
    version=st.sampled_from(["gptq", "gptq_v2"]),
    desc_act=st.booleans(),
    sym=st.booleans(),
    columns=st.sampled_from([1, 4, 7]),
    special=st.lists(st.sampled_from([np.inf, -np.inf, np.nan, 65504.0, -0.0, 2.0**-24]), max_size=3),
)
def test_any_case_has_the_bits_of_exact_arithmetic(
    seed, bits, group_size, regime, version, desc_act, sym, columns, special
):
    """Random shapes, formats and orders; NaN and infinite inputs spread as they do in the kernel."""
    rng = np.random.default_rng(seed)
    k = group_size if group_size == 160 else 128
    case = draw(
        rng,
        bits,
        group_size,
        regime,
        m=1,
        k=k,
        n=columns,
        version=version,
        desc_act=desc_act and k > group_size,
        sym=sym,
    )
    for value in special:
        case.x[0, rng.integers(k)] = value
    y, blocks, _ = case.scalar()
    assert_same_bits(simulate(case), y)
    assert_same_bits(simulate(case, per_block=True), blocks)


@settings(max_examples=150, deadline=None)
@given(
    x=st.lists(st.integers(0, 0xFFFF), min_size=8, max_size=8),
    codes=st.lists(st.integers(0, 15), min_size=8, max_size=8),
    zero=st.integers(1, 16),
    scale=st.integers(0, 0xFFFF),
)
def test_any_bit_pattern_of_a_word(x, codes, zero, scale):
    """One 4-bit word of arbitrary halves (subnormal, infinite, NaN) and an arbitrary scale, in a row of zeros."""
    row = np.zeros((1, 32), np.float16)
    row[0, 8:16] = np.array(x, np.uint16).view(np.float16)
    column = np.full((32, 1), zero % 16)
    column[8:16, 0] = codes
    scales = np.array([[scale]], np.uint16).view(np.float16)
    case = Case(row, column, np.array([[zero]]), scales, np.zeros(32, int), 32, 4)
    assert_same_bits(simulate(case), case.scalar()[0])


@pytest.mark.parametrize("bits", BITS)
def test_plain_numpy_gives_the_same_bits(bits, monkeypatch, caplog):
    """The fallback agrees with the compiled loops on more values than the scalar code can do."""
    for r, regime in enumerate(REGIMES):
        case = draw(np.random.default_rng([bits, r]), bits, 32, regime, m=5, k=320, n=130)
        case.x[1, 3], case.x[2, 5] = np.inf, np.nan
        codes, _ = case.unscaled
        arguments = case.x, codes, case.scales, 32, bits
        fast, blocks = simulate_fast_path(*arguments), simulate_fast_path(*arguments, True)
        y_fast, rms_fast = fast_path_spread(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(compiler, "available", lambda: False)
            assert_same_bits(fast, simulate_fast_path(*arguments))
            assert_same_bits(blocks, simulate_fast_path(*arguments, True))
            y_plain, rms_plain = fast_path_spread(*arguments)
        assert_same_bits(y_fast, fast)
        assert_same_bits(y_plain, fast)
        np.testing.assert_allclose(rms_fast, rms_plain, rtol=1e-5)
        assert np.isfinite(rms_fast[0]).any() or regime == "overflow"


def test_missing_compiler_is_said_once(monkeypatch, caplog):
    """Whoever gets the slow loops is told so, and why, in one warning."""
    monkeypatch.setattr(compiler, "obstacle", lambda: "numba is not installed")
    compiler.available.cache_clear()
    try:
        assert not compiler.available() and not compiler.available()
        assert [record.getMessage().count("numba is not installed") for record in caplog.records] == [1]
    finally:
        compiler.available.cache_clear()


@pytest.mark.parametrize("rows", [1, 24, 25, 50, 51, 64])
def test_rows_do_not_touch_each_other(rows):
    """A row's result does not depend on how many rows there are: M = 51 has the rows of M = 1."""
    case = draw(np.random.default_rng(rows), 4, 64, "wild", m=rows, k=256, n=70)
    y = simulate(case)
    codes, _ = case.unscaled
    for m in {0, rows // 2, rows - 1}:
        assert_same_bits(y[m : m + 1], simulate_fast_path(case.x[m : m + 1], codes, case.scales, 64, 4))


@pytest.mark.parametrize(
    ("code", "activation", "finite"),
    [(-8, 8180.0, True), (-8, 8192.0, False), (-16, 4092.0, True), (-16, 4096.0, False)],
)
def test_one_activation_overflows_where_the_h100_did(code, activation, finite):
    """An activation of 8192 on code -8 (4096 on -16) is infinite, one step below is not: measured on an H100."""
    x = np.zeros((1, 32), np.float16)
    x[0, 5] = activation
    codes = np.full((32, 8), code)
    y = simulate_fast_path(x, codes, np.full((1, 8), 0.001, np.float16), 32, 4)
    assert np.isfinite(y).all() == finite


def test_what_the_kernel_cannot_multiply_is_refused():
    """Group sizes, shapes, types and codes that vLLM's kernel would get wrong."""
    x, codes, scales = np.zeros((1, 192), np.float16), np.zeros((192, 8), np.int8), np.ones((2, 8), np.float16)
    with pytest.raises(ValueError, match="neither divides"):
        simulate_fast_path(x, codes, scales, 96, 4)
    with pytest.raises(ValueError, match="multiple of 32"):
        simulate_fast_path(x, codes, np.ones((12, 8), np.float16), 16, 4)
    with pytest.raises(ValueError, match="not a multiple of group_size"):
        simulate_fast_path(x, codes, scales, 128, 4)
    with pytest.raises(ValueError, match="scales have the shape"):
        simulate_fast_path(x, codes, scales, 64, 4)
    with pytest.raises(ValueError, match="float16"):
        simulate_fast_path(x.astype(np.float32), codes, scales[:1], 192, 4)
    with pytest.raises(ValueError, match="magnitude 17"):
        simulate_fast_path(x, codes - 17, scales[:1], 192, 4)
    with pytest.raises(ValueError, match="5 bit"):
        simulate_fast_path(x, codes, scales[:1], 192, 5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("regime", ["ordinary", "subnormal"])
@pytest.mark.parametrize("k", [128, 1536, 5120])
def test_spread_is_the_size_of_the_real_error(bits, regime, k):
    """The true rounding errors are near what is expected for a random order, and the worst order's bound is above."""
    case = draw(np.random.default_rng([9, bits]), bits, 128, regime, m=8, k=k, n=64)
    codes, _ = case.unscaled
    y, rms = fast_path_spread(case.x, codes, case.scales, 128, bits, "random")
    exact = case.x.astype(np.float64) @ (codes * np.repeat(case.scales.astype(np.float64), 128, axis=0))
    ratio = np.sqrt(((y - exact) ** 2).mean() / (rms.astype(np.float64) ** 2).mean())
    assert 0.7 < ratio < 1.25, ratio
    _, worst = fast_path_spread(case.x, codes, case.scales, 128, bits)
    assert np.mean(worst > 0.99 * rms) > 0.99  # the mean over significands can pass one sum's own spacing


def test_spread_is_infinite_where_a_sum_overflows():
    """No finite noise floor for a column that overflowed inside; its neighbours keep theirs."""
    x = np.zeros((1, 32), np.float16)
    x[0, 0] = 8192
    codes = np.zeros((32, 8), np.int8)
    codes[0, 3] = -8
    y, rms = fast_path_spread(x, codes, np.full((1, 8), 0.01, np.float16), 32, 4)
    assert np.isinf(y[0, 3]) and np.isinf(rms[0, 3]) and np.isfinite(np.delete(rms, 3)).all()


def test_spread_in_parts_is_the_same(monkeypatch):
    """Taking the rows of x in parts, to bound memory, changes nothing; no rows at all give no results."""
    case = draw(np.random.default_rng(2), 4, 64, "ordinary", m=5, k=256, n=70)
    codes, _ = case.unscaled
    whole = fast_path_spread(case.x, codes, case.scales, 64, 4)
    monkeypatch.setattr(simulate_module, "_BLOCK_RESULTS", 300)
    parts = fast_path_spread(case.x, codes, case.scales, 64, 4)
    assert_same_bits(parts[0], whole[0])
    assert np.array_equal(parts[1], whole[1])
    y, rms = fast_path_spread(case.x[:0], codes, case.scales, 64, 4)
    assert y.shape == rms.shape == (0, 70)
