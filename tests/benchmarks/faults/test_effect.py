"""The size of a fault in thresholds: by hand for plain cases, and against the judge for the definition."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.faults.effect import Effect, Seen, _of_linear
from benchmarks.faults.threshold import share_of_input, share_of_product, share_of_sum
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.judge import CapturedCall, judge_layer
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.faults.fault import Fault

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture
def linear(stored):
    with open_checkpoint(stored["4bit"].path) as checkpoint:
        yield checkpoint.packed(LAYER), layer_weight(checkpoint.packed(LAYER).spec, checkpoint, checkpoint)


@pytest.mark.parametrize("path", ["fp16", "exllama-fast", "exllama-reconstruct"])
@pytest.mark.parametrize("where", ["everywhere", "one row", "one column"])
def test_the_threshold_is_the_judges(linear, path, where):
    """A product that is exact but for the fault has the excess that the fault has as its share."""
    packed, weight = linear
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 128)).astype(np.float16).astype(np.float64)
    change = 0.01 * rng.standard_normal((12, packed.spec.out_features))
    if where == "one row":
        change[1:] = 0
    if where == "one column":
        change[:, 1:] = 0
    w = weight.w_KN.double().numpy()
    share = share_of_product(path, packed, w, x, change)
    y = torch.from_numpy(x @ w + change).float()
    (judged,) = judge_layer(weight, [CapturedCall(0, 0, path, torch.from_numpy(x).half(), y, None)])
    assert judged.excess == pytest.approx(share, rel=1e-3)


def test_nan_and_rows_that_are_lost_already(linear):
    """A NaN in a row whose input was finite has no size; one in a row that was lost before does not count."""
    packed, weight = linear
    x, w = np.ones((2, 128)), weight.w_KN.double().numpy()
    change = np.zeros((2, packed.spec.out_features))
    change[1, 3] = np.nan
    assert share_of_product("fp16", packed, w, x, change) == np.inf
    x[1, 0] = np.inf
    assert share_of_product("fp16", packed, w, x, change) == 0.0


def test_a_sum_of_two_terms_by_hand():
    """Terms of 1 and 0.5 have a sum of 1.5, whose ulp in float16 is 2^-10: a change of three of its roundings is 1."""
    terms = np.stack([np.ones((1, 4)), 0.5 * np.ones((1, 4))])
    change = np.full((1, 4), 3 * 2.0**-10 / np.sqrt(12))
    assert share_of_sum(terms, change) == pytest.approx(1.0)


def test_an_input_that_parts_three_times_as_far_as_rounding_does():
    """The share of a fault between linears is its distance over three times the healthy one."""
    healthy, reference = np.array([[1.0, 0.0]]), np.array([[1.0, 0.1]])
    assert share_of_input(healthy, reference, np.array([[1.3, 0.0]])) == pytest.approx(1.0)
    assert share_of_input(healthy, reference, np.array([[np.nan, 0.0]])) == np.inf


@pytest.mark.parametrize(
    ("share", "felt", "unread"), [(50.0, 0.3, True), (50.0, 49.0, False), (0.5, 0.2, False), (2.0, None, False)]
)
def test_an_engine_that_does_not_read_what_was_damaged(share, felt, unread):
    """Only a large effect of which the product shows nothing counts as unread."""
    assert Effect(share, felt).unread is unread


@dataclass
class Captured:
    """A run in which one linear was called once."""

    x: torch.Tensor
    y: torch.Tensor

    def stats(self):
        return [{"step": 0, "layer": LAYER, "path": "fp16", "part": ""}]

    def tensor(self, step, layer, side):
        return self.x if side == "in" else self.y


class Weights:
    """A model of one linear."""

    def __init__(self, w):
        self.w = w

    def linear(self, name):
        return SimpleNamespace(weight=lambda: self.w)


def test_of_two_faults_the_one_that_is_not_read_is_told_apart(linear):
    """What the other did elsewhere is not felt where this one would have changed something."""
    packed, weight = linear
    w = weight.w_KN.double().numpy()
    x = np.random.default_rng(1).standard_normal((12, 128)).astype(np.float16)
    ignored, read = w.copy(), w.copy()
    ignored[:, 10] *= 1.5
    read[:, 20] *= 1.5
    seen = Seen(Captured(torch.from_numpy(x), torch.from_numpy(x.astype(np.float64) @ read)), None, None)
    judge = SimpleNamespace(packed=lambda name: packed)
    one, other = (
        _of_linear(Fault("zero-point-shift", "", (LAYER,)), LAYER, Weights(w), Weights(after), Weights(w), judge, seen)
        for after in (ignored, read)
    )
    assert min(one.share, other.share) > 1.0
    assert (one.unread, other.unread) == (True, False)
