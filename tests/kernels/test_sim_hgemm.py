"""The model of hgemm: what it computes, how noisy it is, and that both of its forms agree."""

from __future__ import annotations

import numpy as np
import pytest

from gptq_diff.kernels import compiler
from gptq_diff.kernels.hgemm_model import simulate_reconstruct
from tests.kernels.fast_path_cases import assert_same_bits


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def scalar_product(x, w):
    """One element, a step at a time; numpy's float32 scalars round after every operation."""
    total = np.float16(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(x), 16):
            products = np.float32(0)
            for a, b in zip(x[start : start + 16], w[start : start + 16]):
                products = np.float32(products + np.float32(a) * np.float32(b))
            total = np.float16(np.float32(total) + products)
    return total


@pytest.mark.parametrize("k", [16, 128, 200, 320])
@pytest.mark.parametrize("size", [1e-4, 1.0, 90.0])
def test_steps_of_sixteen_rows(k, size):
    """One rounding to half for 16 rows of K, subnormal and infinite sums included."""
    rng = np.random.default_rng(k)
    x, w = (normal(rng, 3, k) * np.float16(size)), (normal(rng, k, 5) * np.float16(size))
    expected = np.array([[scalar_product(x[m], w[:, n]) for n in range(5)] for m in range(3)])
    assert_same_bits(simulate_reconstruct(x, w), expected)


def test_plain_numpy_gives_the_same_bits(monkeypatch):
    """The fallback agrees with the compiled loop, NaN and infinite inputs included."""
    rng = np.random.default_rng(1)
    x, w = normal(rng, 9, 400), normal(rng, 400, 130)
    x[1, 2], x[2, 3], w[4, 5] = np.inf, np.nan, -np.inf
    fast = simulate_reconstruct(x, w)
    monkeypatch.setattr(compiler, "available", lambda: False)
    assert_same_bits(fast, simulate_reconstruct(x, w))


@pytest.mark.parametrize(
    ("k", "low", "high"), [(1536, 1.3e-3, 1.6e-3), (5120, 2.4e-3, 2.9e-3), (27648, 5.5e-3, 6.6e-3)]
)
def test_noise_is_near_what_an_h100_shows(k, low, high):
    """Relative l2 error on normal inputs; an H100 showed 7e-4, 2.6e-3 and 3.5e-3 to 6e-3 for these K."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 32, k), normal(rng, k, 64)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    error = np.linalg.norm(simulate_reconstruct(x, w) - exact) / np.linalg.norm(exact)
    assert low < error < high, error


def test_a_partial_sum_overflows_though_the_result_is_small():
    """+-30000 activations whose products cancel only later: infinite here, fine in float32."""
    x = np.zeros((1, 64), np.float16)
    x[0, :16], x[0, 32:48] = 30000, -30000
    w = np.ones((64, 8), np.float16)
    assert np.isinf(simulate_reconstruct(x, w)).all()
    assert (x.astype(np.float32) @ w.astype(np.float32) == 0).all()


def test_other_types_are_refused():
    """float32 inputs and wrong shapes are mistakes of the caller."""
    x, w = np.zeros((1, 16), np.float16), np.zeros((16, 4), np.float16)
    with pytest.raises(ValueError, match="float16"):
        simulate_reconstruct(x.astype(np.float32), w)
    with pytest.raises(ValueError, match="float16"):
        simulate_reconstruct(x, w.astype(np.float32))
    with pytest.raises(ValueError, match="16"):
        simulate_reconstruct(x[:, :8], w)
