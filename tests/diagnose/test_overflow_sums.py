"""The sum behind a lost output, as it is drawn: right number by number, and never many of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import torch

from gptq_diff.diagnose.overflow.sums import MOST, accumulator, lane, narrowed
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.records import Finding
from tests.diagnose.build import explained, inputs, make


def test_a_lane_is_the_kernels_own_chain() -> None:
    """Against multiply-adds done one by one in float16; infinite from the product that passes 65,504."""
    x, codes = np.array([3.1, 9000.0, -2.5, 7.0], np.float16), np.array([-3.0, -8.0, 5.0, 1.0])
    terms = x.astype(np.float64) * codes
    found = lane("products", 2, 5, [4, 6, 8, 10], terms)
    assert found is not None
    assert (found.row, found.column, found.channels) == (2, 5, (4, 6, 8, 10))
    np.testing.assert_allclose(found.exact, np.cumsum(terms), rtol=1e-6)
    assert found.half[0] == float(np.float16(terms[0]))
    assert found.half[1:] == (None, None, None)


def test_a_finding_carries_the_lane_that_it_speaks_of() -> None:
    """From a call whose output the simulated kernel loses; it survives being stored."""
    d, x = make("model.layers.0.mlp.down_proj", 512), inputs(5)
    x[2, 77] = 9000.0
    y = SimExllama().multiply(x, d.linear).y_MN
    (found,) = explained(y, x, d, path="exllama-fast")
    sums = found.sums
    assert sums is not None
    assert (sums.row, len(sums.channels)) == (2, 4)
    assert 77 in sums.channels
    codes = (d.codes[list(sums.channels), sums.column].double() - 8).numpy()
    terms = x[2, list(sums.channels)].double().numpy() * codes
    np.testing.assert_allclose(sums.exact, np.cumsum(terms), rtol=1e-6)
    assert max(abs(v) for v in sums.exact) > sums.limit and None in sums.half
    assert not bool(torch.isfinite(y[2, sums.column]))
    assert Finding.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_a_long_sum_is_thinned_and_keeps_its_extremes() -> None:
    rng = np.random.default_rng(0)
    products = rng.normal(size=27648)
    products[5000], products[5001] = 70000.0, -70000.0
    for found, exact in (
        (narrowed("p", 0, 0, products), np.cumsum(products)),
        (accumulator("p", 0, 0, products, 16), np.cumsum(products.reshape(-1, 16).sum(axis=1))),
    ):
        assert len(found.channels) == len(found.exact) <= MOST + 2
        np.testing.assert_allclose((min(found.exact), max(found.exact)), (exact.min(), exact.max()), rtol=1e-6)
        assert list(found.channels) == sorted(set(found.channels))
    assert narrowed("p", 0, 0, products).half == ()


def test_a_half_accumulator_of_small_sums_stays_finite() -> None:
    """Rounded after every step, against numpy's own float16 additions."""
    products = np.random.default_rng(1).normal(size=64)
    found = accumulator("p", 0, 0, products, 16)
    assert found is not None
    total = np.float16(0)
    for i, value in enumerate(found.half):
        total = np.float16(float(total) + products[16 * i : 16 * i + 16].sum())
        assert value == float(total)
    assert found.channels == (15, 31, 47, 63)


def test_a_sum_with_a_weight_that_is_no_number_has_no_picture() -> None:
    """A report holds numbers only; what is infinite in float16 alone is told as missing."""
    products = np.array([1.0, float("nan"), 3.0])
    assert narrowed("s", 0, 0, products) is None
    assert accumulator("s", 0, 0, products, 1) is None
    assert lane("s", 0, 0, [0, 1, 2], products) is None
