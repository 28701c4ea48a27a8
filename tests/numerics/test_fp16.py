"""Half precision by definition: all 65536 halves, random doubles near midpoints, exact rationals as the judge."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.numerics.fp16 import (
    HALF_MAX,
    HALF_MIN_ULP,
    HALF_OVERFLOW,
    add_to_odd,
    fma_half,
    fma_single,
    round_to_half,
    ulp_half,
)
from tests.kernels import scalar_fast_path as scalar

ALL = np.arange(0x10000, dtype=np.uint32).astype(np.uint16).view(np.float16)
FINITE = ALL[np.isfinite(ALL)]
half_bits = st.integers(0, 0xFFFF).map(lambda bits: float(np.uint16(bits).view(np.float16)))


def near_midpoints():
    """Doubles at, just above and just below the midpoint of every two neighbouring halves, overflow included."""
    low = np.unique(FINITE[FINITE >= 0].astype(np.float64))
    midpoints = (low + np.append(low[1:], 65536.0)) / 2
    nudged = np.concatenate([midpoints, np.nextafter(midpoints, 0), np.nextafter(midpoints, np.inf)])
    return np.concatenate([nudged, -nudged])


def same(actual, expected):
    return bool(actual == expected or (np.isnan(actual) and np.isnan(expected)))


def test_every_half_survives_and_its_constants_hold():
    """Rounding a half changes nothing, and the constants are where rounding turns."""
    assert np.array_equal(round_to_half(ALL.astype(np.float64)), ALL, equal_nan=True)
    assert FINITE.max() == HALF_MAX and round_to_half(np.array([HALF_OVERFLOW]))[0] == np.inf
    assert round_to_half(np.nextafter(np.array([HALF_OVERFLOW]), 0))[0] == HALF_MAX
    assert FINITE[FINITE > 0].min() == HALF_MIN_ULP


def test_rounding_near_every_midpoint_is_by_definition():
    """190,000 doubles around all midpoints round as exact rationals say."""
    values = near_midpoints()
    rounded = round_to_half(values).astype(np.float64)
    for value, result in zip(values[::7].tolist(), rounded[::7].tolist()):
        assert result == scalar.rounded(Fraction(value), scalar.HALF)
    positive = np.unique(FINITE[FINITE >= 0].astype(np.float64))
    count = len(positive)
    above = np.append(positive[1:], np.inf)
    even = np.where(positive.astype(np.float16).view(np.uint16) % 2 == 0, positive, above)
    assert np.array_equal(rounded[:count], even)
    assert np.array_equal(rounded[count : 2 * count], positive)
    assert np.array_equal(rounded[2 * count : 3 * count], above)


def test_ulp_of_every_half_is_numpys_spacing():
    """Also of zero and of subnormals (2**-24), and of both signs; infinite for infinities, NaN for NaN."""
    spacing = np.spacing(np.abs(FINITE[np.abs(FINITE) < HALF_MAX])).astype(np.float32)
    assert np.array_equal(ulp_half(FINITE[np.abs(FINITE) < HALF_MAX]), spacing)
    special = ulp_half(np.array([65504, -np.inf, np.inf, np.nan, 0, -0.0], np.float16))
    assert special[:3].tolist() == [32.0, np.inf, np.inf] and np.isnan(special[3])
    assert special[4:].tolist() == [HALF_MIN_ULP] * 2


@settings(max_examples=300, deadline=None)
@given(a=half_bits, b=half_bits | st.integers(-256, 255).map(float), c=half_bits)
def test_fma_half_rounds_once(a, b, c):
    """Any halves and codes, special values included."""
    assert same(float(fma_half(*(np.array([v]) for v in (a, b, c)))[0]), scalar.fma(a, b, c, scalar.HALF))


@settings(max_examples=300, deadline=None)
@given(
    a=st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-60),
    b=half_bits,
    c=st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-60),
)
def test_fma_single_rounds_once(a, b, c):
    """float32 times half plus float32, as the scale step of 4 bit does."""
    assert same(float(fma_single(*(np.array([v]) for v in (a, b, c)))[0]), scalar.fma(a, b, c, scalar.SINGLE))


@settings(max_examples=300, deadline=None)
@given(a=st.floats(-1e100, 1e100), b=st.floats(-1e100, 1e100))
def test_add_to_odd_is_exact_or_the_odd_neighbour(a, b):
    """The definition of rounding to odd, on random doubles."""
    total = float(add_to_odd(np.array([a]), np.array([b]))[0])
    exact = Fraction(a) + Fraction(b)
    if Fraction(total) != exact:
        assert np.float64(total).view(np.int64) % 2 == 1
        other = np.nextafter(total, np.inf if exact > Fraction(total) else -np.inf)
        assert min(total, other) < exact < max(total, other)


def test_compiled_pieces_agree_with_definitions():
    """The LLVM conversions and the single rounding of the compiled loops, on all halves and all midpoints."""
    pytest.importorskip("numba")
    from gptq_diff.kernels import compiler

    if not compiler.available():
        pytest.skip(compiler.obstacle())
    import numba

    from gptq_diff.kernels.compiled import half_of_bits, round_half, round_sum, ulp_squared

    @numba.njit
    def over(a, b, bits, rounded, summed, squares, widened):
        for i in range(len(a)):
            rounded[i] = round_half(a[i])
            summed[i] = round_sum(a[i], b[i])
            squares[i] = ulp_squared(rounded[i])
        for i in range(len(bits)):
            widened[i] = half_of_bits(bits[i])

    midpoints = near_midpoints().astype(np.float32)
    rng = np.random.default_rng(0)
    tiny = (rng.choice([-1, 1], len(midpoints)) * rng.integers(0, 3, len(midpoints)) * 2.0**-24).astype(np.float32)
    outputs = [np.empty(len(midpoints), np.float32) for _ in range(3)]
    widened = np.empty(len(ALL), np.float32)
    over(midpoints, tiny, ALL.view(np.uint16), *outputs, widened)
    exact = midpoints.astype(np.float64) + tiny.astype(np.float64)
    assert np.array_equal(outputs[1], round_to_half(exact).astype(np.float32))
    with np.errstate(over="ignore"):
        assert np.array_equal(outputs[0], midpoints.astype(np.float16).astype(np.float32))
        assert np.array_equal(outputs[2], (ulp_half(outputs[0]) * 2.0**10) ** 2)
        naive = (midpoints + tiny).astype(np.float16).astype(np.float32)
    assert np.array_equal(widened, ALL.astype(np.float32), equal_nan=True)
    assert (naive != outputs[1]).any()  # the cases are hard enough to catch two roundings
