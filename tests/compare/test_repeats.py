"""Determinism: split-K noise is reported, more than rounding explains is a failure."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from gptq_diff.compare.repeats import settle_repeats
from tests.compare.made import N, judgement, result
from tests.compare.test_align import stored

FLOOR = 1e-3


def run_of(tmp_path, *outputs, seeds=None):
    """A run directory whose repeats give those outputs; floors are 1e-3 everywhere."""
    readers = [
        stored(tmp_path / str(i), (1,), seed=(seeds or [0] * len(outputs))[i], repeat_y=y)
        for i, y in enumerate(outputs)
    ]
    judgements = [judgement(layer, index=i, noise_floor=FLOOR) for i, layer in enumerate(("a", "b"))]
    return SimpleNamespace(reader=lambda backend, prompt, repeat=1: readers[repeat - 1]), judgements


def steady(x, layer):
    return torch.full((len(x), N), 4.0).half()


def noisy(size, at="b"):
    def give(x, layer):
        return steady(x, layer) * (1 + size if layer == at else 1)

    return give


def test_one_run_says_nothing(tmp_path):
    run, rows = run_of(tmp_path, steady)
    made = result()
    assert settle_repeats(made, run, 1, rows) is made


def test_equal_bits_change_nothing(tmp_path):
    run, rows = run_of(tmp_path, steady, steady, steady)
    made = result()
    assert settle_repeats(made, run, 3, rows) is made


def test_other_bits_within_the_rounding_are_split_k_noise(tmp_path):
    run, rows = run_of(tmp_path, steady, noisy(2 * FLOOR))
    settled = settle_repeats(result(), run, 2, rows)
    assert settled.status == "agree"
    (finding,) = settled.findings
    assert (finding.cause, finding.layer) == ("split-k-noise", None)
    assert "1 linears gave other bits" in finding.evidence[0]


def test_more_than_two_independent_roundings_explain_is_nondeterministic(tmp_path):
    run, rows = run_of(tmp_path, steady, steady, noisy(6 * FLOOR))  # 3 * sqrt(2) = 4.24 floors are allowed
    settled = settle_repeats(result(), run, 3, rows)
    assert settled.status == "nondeterministic"
    assert (settled.findings[0].cause, settled.findings[0].layer) == ("race-or-uninitialised", "b")


def test_a_failure_nearer_the_kernel_keeps_its_status(tmp_path):
    run, rows = run_of(tmp_path, steady, noisy(6 * FLOOR))
    assert settle_repeats(result("overflow"), run, 2, rows).status == "overflow"
    assert settle_repeats(result("collapsed"), run, 2, rows).status == "nondeterministic"


def test_infinite_in_one_run_only_is_nondeterministic(tmp_path):
    def infinite(x, layer):
        return steady(x, layer) * float("inf")

    run, rows = run_of(tmp_path, steady, infinite)
    assert settle_repeats(result(), run, 2, rows).status == "nondeterministic"
    run, rows = run_of(tmp_path / "both", infinite, infinite)
    assert settle_repeats(result(), run, 2, rows).findings == ()


def test_other_inputs_are_not_held_against_the_kernel(tmp_path):
    run, rows = run_of(tmp_path, steady, noisy(0.5, at="a"), seeds=[0, 7])
    assert settle_repeats(result(), run, 2, rows).findings == ()
