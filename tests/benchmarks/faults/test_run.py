"""The benchmark as a whole: the same seed gives the same faults, and an interrupted one goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.faults import run
from benchmarks.faults.draw import Overlay, draw_fault, plantable, undone
from benchmarks.faults.healthy import draw_healthy
from benchmarks.faults.lab import Lab
from benchmarks.faults.real import ENGINES, RealLab
from benchmarks.faults.trial import trial
from gptq_diff.faults.catalogue import KINDS, NOT_PLANTED
from gptq_diff.faults.fault import Fault, of_weights

CAUSES = {
    "accumulator-overflow", "result-overflow", "nan-weights", "nan-input", "all-reduce", "ambiguous-zero",
    "zero-point-shift", "scale-group", "g-idx-ignored", "nibble-order", "shard-order", "bias", "dtype",
    "race-or-uninitialised", "split-k-noise", "row-path", "outside-linears", "unknown",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """On tiny models alone, so that nothing large is built."""
    return Lab(tmp_path_factory.mktemp("lab") / "process", small=0.0)


def test_every_cause_of_the_contract_is_planted_or_said_not_to_be(lab):
    """The list of contract.md, and clamp, which was added to it."""
    assert set(KINDS) | set(NOT_PLANTED) == CAUSES | {"clamp"}
    assert set(plantable(lab)) == set(KINDS)


@pytest.mark.parametrize("number", range(4))
def test_the_same_seed_draws_the_same_fault(lab, number):
    """Model, prompt, words and every changed byte."""
    one, two = draw_fault(lab, 11, number, number), draw_fault(lab, 11, number, number)
    assert one.run == two.run and [f.what for f in one.faults] == [f.what for f in two.faults]
    for a, b in zip(one.faults, two.faults):
        for kept in ("prepared", "changed"):
            first, second = getattr(a, kept), getattr(b, kept)
            assert first.keys() == second.keys()
            assert all(np.array_equal(first[k], second[k], equal_nan=first[k].dtype.kind == "f") for k in first)


def test_a_second_fault_is_drawn_on_top_of_the_first(site):
    """Of a linear that an engine misreads, what was prepared for the sound checkpoint does not come back."""
    place = site("4bit-act", "model.layers.1.mlp.up_proj", size=0.2)
    first = KINDS["g-idx-ignored"](place)
    view = Overlay(place.model, first)
    assert first.prepared and np.array_equal(view.linear(place.layer).g_idx, first.misread[place.layer].g_idx)
    second = KINDS["zero-point-shift"](replace(place, model=view))
    assert np.array_equal(second.misread[place.layer].g_idx, first.misread[place.layer].g_idx)


def test_a_conversion_to_v2_is_seen_as_v2(site):
    """Zero points of 16 come out as 0 there, and every other one as it was."""
    place = site("4bit-asym", "model.layers.1.mlp.up_proj", way="bytes", seed=2)
    fault = KINDS["ambiguous-zero"](place)
    sound = Overlay(place.model, Fault("", "", (), prepared=fault.prepared)).linear(place.layer).zeros()
    view = Overlay(place.model, replace(fault, prepared={}))
    assert sound.max() == 16 and np.array_equal(view.linear(place.layer).zeros(), sound % 16)
    other = "model.layers.0.mlp.up_proj"
    assert np.array_equal(view.linear(other).weight(), place.model.linear(other).weight())


def test_a_pair_of_which_one_is_all_that_is_left_is_not_planted(site):
    """A group size read twice as large drops the last groups' zero points, and with them a fault in those alone."""
    layer, seed, second = "model.layers.1.mlp.up_proj", 0, None
    for last in (True, False):
        sound = site("4bit-asym", layer).model
        zeros = sound.linear(layer).zeros()
        zeros[-last, 5] = zeros[-last, 5] % 15 + 1
        first = of_weights(
            site("4bit-asym", layer, way="bytes"), "zero-point-shift", "", sound.linear(layer).with_zeros(zeros)
        )
        view = Overlay(sound, first)
        while second is None or "group size" not in second.what:
            seed += 1
            second = KINDS["scale-group"](replace(site("4bit-asym", layer), rng=np.random.default_rng(seed)))
        place = replace(site("4bit-asym", layer), model=view, rng=np.random.default_rng(seed))
        faults = [first, KINDS["scale-group"](place)]
        assert undone(sound, faults, place, seed) is last


def test_every_kind_comes_once_in_a_cycle(lab):
    """So many faults of one seed hold each kind alone once, and pairs."""
    drawn = [draw_fault(lab, 5, n, n).drawn_as for n in range(len(KINDS) + 4)]
    assert set(KINDS) <= set(drawn) and len(set(drawn)) == len(KINDS) + 2


def test_a_healthy_run_is_recorded_without_a_fault(lab):
    """Nothing planted, every linear judged; whether anything is said is the benchmark's own question."""
    drawn = draw_healthy(lab, 3, 2)
    assert not any(f.kind for f in drawn.faults)
    record = trial(lab, 3, 2, 2, healthy=True)
    assert record["healthy"] and record["planted"] == [] and record["compared"] == 28


def test_a_trial_finds_a_gross_fault(lab):
    """A record holds what was planted, its size, and what the report says; it can be written as JSON."""
    number = next(n for n in range(60) if draw_fault(lab, 1, n, n).drawn_as == "nan-weights")
    record = json.loads(json.dumps(trial(lab, 1, number, number, healthy=False)))
    (planted,) = record["planted"]
    assert planted["shares"] == {planted["layers"][0]: "inf"}
    assert record["first_bad"]["layer"] == planted["layers"][0]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_real_engines_have_kinds_of_their_own(engine, tmp_path):
    """None is asked for a fault that it cannot have: no half accumulators and no ranks on a CPU."""
    real = RealLab(tmp_path / "real", 0.0, engine, tmp_path)
    kinds = plantable(real)
    assert not {"accumulator-overflow", "all-reduce"} & set(kinds)
    assert {"nibble-order", "clamp", "nan-weights"} <= set(kinds)
    for number in range(8):
        drawn = draw_fault(real, 2, number, number)
        assert all(real.takes(fault) for fault in drawn.faults)


def test_an_interrupted_benchmark_goes_on(lab, tmp_path, monkeypatch, capsys):
    """Records that are there are not made again; what failed is tried again; another seed's do not count."""
    asked = []

    def where(seed, number, *, healthy, keep):
        asked.append((number, healthy))
        return record(healthy=healthy)

    monkeypatch.setattr(run, "places", lambda environments, quick: nullcontext(where))
    monkeypatch.setattr(run, "machine", dict)
    records = tmp_path / "records.jsonl"
    there = [
        {**record(healthy=False), "id": "fault-0", "seed": 4},
        {"id": "healthy-0", "seed": 4, "healthy": True, "error": "no"},
        {**record(healthy=False), "id": "fault-1", "seed": 5},
    ]
    records.write_text("".join(json.dumps(r) + "\n" for r in there))
    given = ["--seed", "4", "--faults", "2", "--records", str(records), "--out", str(tmp_path / "out.json")]
    run.main(given)
    assert asked == [(0, True), (1, False), (1, True)]
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["faults"] == 2


def nullcontext(value):
    import contextlib

    return contextlib.nullcontext(value)


def record(*, healthy):
    return {
        "healthy": healthy, "planted": [], "first_bad": None, "findings": [], "drawn_as": "x", "place": "process",
        "way": "bytes", "model": "m", "kernel": "fp16", "tokens": 5, "extra": "", "seconds": {"all": 1.0},
        "status": "agree", "reference_status": "agree", "reference_findings": [],
    }  # fmt: skip
