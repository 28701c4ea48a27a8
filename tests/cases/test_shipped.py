"""The cases that come with gptq-diff: strict themselves, true here, and false as soon as an expectation is."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gptq_diff.cases.expectations import check_expectations
from gptq_diff.cases.library import find_case, find_cases, shipped_folder, shipped_names
from gptq_diff.cases.read import CAUSES
from gptq_diff.cases.run_case import run_case
from gptq_diff.faults.catalogue import KINDS, NOT_PLANTED
from gptq_diff.presets import preset_named
from gptq_diff.records import HELD

NAMED = (
    "smollm2-healthy", "smollm2-short-collapse", "smollm2-long-ok", "smollm2-prefix-cache", "tiny-qwen2-bang",
    "desc-act", "group-32", "asymmetric", "int8", "marlin-channelwise", "reconstruct-cancellation", "fixed-checkpoint",
    "qwen2.5-32b-short-default-system",
)  # fmt: skip
NOT_SEEN = "qwen2.5-32b-short-default-system"
"""Its model was never here, and nobody has published which linear breaks."""
LAYER = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj")


def needs_gpu(name):
    return any(preset_named(backend).gpu for backend in find_case(name).backends)


ON_A_CPU = [name for name in shipped_names() if not needs_gpu(name) and name != NOT_SEEN]
SLOW = [pytest.param(name, marks=pytest.mark.slow) if "smollm2" in name else name for name in ON_A_CPU]


def test_all_that_were_asked_for_are_there():
    """By name, and one planted fault of each kind that can be planted."""
    assert set(NAMED) <= set(shipped_names())
    planted = {case.fault.kind for case in find_cases(()) if case.name.startswith("fault-") and case.fault}
    assert planted == set(KINDS)
    assert set(CAUSES) - planted == set(NOT_PLANTED)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_case_leaves_nothing_open(name):
    """It is called as its folder, names every backend and prompt that runs, each with its status, and no wildcard."""
    case = find_case(name)
    assert case.file == shipped_folder() / name / "case.toml"
    assert case.name == name
    assert case.description
    told = {(e.backend, e.prompt) for e in case.expect}
    assert None not in {part for pair in told for part in pair}
    if name != NOT_SEEN:
        assert told == {(b, p.id) for b in {case.reference, *case.backends} for p in case.prompts}
    for expected in case.expect:
        assert expected.status is not None
        if expected.status != "agree":
            assert expected.cause is not None
            assert name == NOT_SEEN or LAYER.fullmatch(expected.layer or "")


def falsified(expected):
    """The expectation with one thing otherwise: its status, its layer, its cause, its collapse."""
    other = "overflow" if expected.status != "overflow" else "diverged"
    yield replace(expected, status=other)
    yield (
        replace(expected, status="agree", layer=None, cause=None)
        if expected.status != "agree"
        else replace(expected, status="nan")
    )
    yield replace(expected, layer="model.layers.0.self_attn.k_proj")
    yield replace(expected, cause="split-k-noise")
    yield replace(expected, collapsed=not bool(expected.collapsed))


@pytest.mark.parametrize("name", SLOW)
def test_a_shipped_case_holds_and_fails_when_it_is_falsified(name, tmp_path, here):
    """Run once; then every expectation is falsified in turn on what happened, and each time that is told."""
    case = find_case(name)
    outcome = run_case(case, out=tmp_path / "case")
    assert (outcome.state, [c.differences for c in outcome.checks if not c.held]) == (HELD, []), outcome.reason
    assert all(check_.held for check_ in check_expectations(case.expect, outcome.seen))
    tried = 0
    for number, expected in enumerate(case.expect):
        for false in falsified(expected):
            changed = [*case.expect[:number], false, *case.expect[number + 1 :]]
            told = [check for check in check_expectations(changed, outcome.seen) if not check.held]
            assert [(t.backend, t.prompt) for t in told] == [(expected.backend, expected.prompt)], (name, false)
            tried += 1
    assert tried == 5 * len(case.expect)
