"""A large weight is judged by tile by tile; what is found is what the whole weight finds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.compare.judge import CapturedCall, judge_layer
from gptq_diff.compare.weight import Weight
from gptq_diff.kernels import compiler
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.tiled import products
from tests.kernels.fast_path_cases import draw

pytestmark = pytest.mark.skipif(not compiler.available(), reason="tiles need the compiled loops")


@pytest.fixture
def tiled(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)


def both(case, broken=()):
    """The same weight, whole and in tiles."""
    linear = case.linear()
    bad_N = torch.zeros(case.codes.shape[1], dtype=torch.bool)
    bad_N[list(broken)] = True
    whole = Weight(linear.spec, dequantise(linear), bad_N, bad_N, linear)
    return whole, dataclasses.replace(whole, given_KN=None)


def calls_of(x_MK, w_KN, linear):
    """Healthy and faulty kernels on that input."""
    exact_MN = torch.nan_to_num(x_MK.double() @ w_KN.double())
    wrong_column, wrong_row, lost = exact_MN.half(), exact_MN.half(), exact_MN.half()
    wrong_column[:, 3] *= 1.1
    wrong_row[2] *= 1.05
    lost[1, 4] = float("inf")
    outputs = {
        "healthy": (exact_MN.half(), "fp16"), "column": (wrong_column, "fp16"), "row": (wrong_row, "fp16"),
        "lost": (lost, "fp16"), "simulated": (SimExllama().multiply(x_MK, linear).y_MN, "exllama-fast"),
        "wide": (exact_MN.float() * (1 + 1e-5), "exact"),
    }  # fmt: skip
    return [
        CapturedCall(0, i, path, x_MK.float() if path == "exact" else x_MK, y_MN, None)
        for i, (y_MN, path) in enumerate(outputs.values())
    ]


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("regime", ["ordinary", "wild", "overflow"])
def test_tiles_and_the_whole_weight_judge_alike(regime, desc_act):
    """Kind, counts and places are equal, and every size to half a per cent, for healthy calls and faults of each sort.

    The float32 call is judged by sums of 128 products in float32 where the whole weight is summed in float64: its
    error, a hundred thousandth, is seen to three per cent.
    """
    case = draw(np.random.default_rng(5), 4, 32, regime, m=12, k=256, n=96, desc_act=desc_act)
    case.scales[1, 7] = np.nan
    whole, tiles = both(case, broken=[7])
    calls = calls_of(torch.from_numpy(case.x), torch.nan_to_num(whole.w_KN), whole.linear)
    kinds = []
    for a, b in zip(judge_layer(whole, calls), judge_layer(tiles, calls)):
        kinds.append(a.kind)
        within = 3e-2 if a.path == "exact" else 5e-3
        for field in dataclasses.fields(a):
            left, right = getattr(a, field.name), getattr(b, field.name)
            close = isinstance(left, float) and isinstance(right, float)
            rel = 2 * within if field.name == "error_share" else within  # a square
            assert left == (pytest.approx(right, rel=rel, abs=1e-12) if close else right), (a.index, field.name)
    if regime == "ordinary":
        assert kinds == ["ok", "diverged", "diverged", "overflow", "nan", "diverged"]


@pytest.mark.usefixtures("tiled")
def test_the_whole_of_a_large_weight_is_not_unpacked_for_healthy_calls():
    """Memory: what is never asked for is never made; and where it is, it goes into the memory that was given."""
    case = draw(np.random.default_rng(6), 4, 32, "ordinary", m=9, k=128, n=64)
    memory = torch.zeros(128 * 64)
    _, tiles = both(case)
    tiles = dataclasses.replace(tiles, memory=memory)
    exact_MN = torch.from_numpy(case.x).double() @ dequantise(case.linear()).double()
    judge_layer(tiles, [CapturedCall(0, 0, "fp16", torch.from_numpy(case.x), exact_MN.half(), None)])
    assert not memory.any()
    assert torch.equal(tiles.w_KN, dequantise(case.linear())) and memory.any()
