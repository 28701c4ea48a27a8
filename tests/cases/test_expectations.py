"""What happened is held against what is expected, both ways round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.cases.expectations import check_expectations, seen_in
from gptq_diff.records import Expectation, Finding, Seen
from tests.report.build import a_report, a_result

DOWN = "model.layers.1.mlp.down_proj"
BROKEN = Seen("sim-gptq", "short", "overflow", DOWN, "accumulator-overflow", True, 17, "overflow")
HEALTHY = Seen("hf-fp16", "short", "agree", None, None, False, 28, "agree")
EXPECTED = Expectation("sim-gptq", "short", "overflow", DOWN, "accumulator-overflow", True)


def differences(expected, *seen):
    return [d for check in check_expectations(expected, seen) for d in check.differences]


def test_what_is_as_expected_holds():
    """Status, layer, cause and collapse of one, and the silent expectation that all else agrees."""
    checks = check_expectations([EXPECTED], [BROKEN, HEALTHY])
    assert [(c.backend, c.stated, c.held) for c in checks] == [("sim-gptq", True, True), ("hf-fp16", False, True)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"status": "diverged"}, "status: expected diverged, happened overflow"),
        ({"layer": "model.layers.0.mlp.down_proj"}, f"layer: expected model.layers.0.mlp.down_proj, happened {DOWN}"),
        ({"cause": "unknown"}, "cause: expected unknown, happened accumulator-overflow"),
        ({"collapsed": False}, "collapsed: expected no, happened yes"),
    ],
)
def test_each_thing_that_is_otherwise_is_told(change, told):
    """One phrase for one difference: expected X, happened Y."""
    expected = Expectation(**{**EXPECTED.__dict__, **change})
    assert differences([expected], BROKEN) == [told]


def test_a_failure_that_does_not_come_is_a_difference_too():
    """A defect that is gone has to be noticed as one that is new."""
    well = Seen("sim-gptq", "short", "agree", None, None, False, 28, "agree")
    assert differences([EXPECTED], well) == [
        "status: expected overflow, happened agree", f"layer: expected {DOWN}, happened none",
        "cause: expected accumulator-overflow, happened none", "collapsed: expected yes, happened no",
    ]  # fmt: skip


def test_a_failure_that_nobody_expected_is_a_difference():
    """What no expectation names has to agree; its layer and its cause are told."""
    checks = check_expectations([Expectation("hf-fp16", "short", "agree")], [HEALTHY, BROKEN])
    assert not checks[1].stated
    assert checks[1].differences == (
        "status: expected agree, happened overflow", f"layer: expected none, happened {DOWN}",
        "cause: expected none, happened accumulator-overflow",
    )  # fmt: skip


def test_what_came_with_the_prefix_cache_has_its_layer():
    """No linear errs, yet the output collapsed: the finding says where what is not finite comes in."""
    finding = Finding("nan-input", 0.9, ("from the cache",), DOWN)
    result = replace(a_result("collapsed", "vllm-gptq"), findings=(finding,))
    (seen,) = seen_in(a_report(result))
    assert (seen.status, seen.layer, seen.cause, seen.collapsed) == ("collapsed", DOWN, "nan-input", True)


def test_what_is_left_out_is_not_looked_at():
    """Status alone, or collapse alone."""
    assert differences([Expectation("sim-gptq", "short", status="overflow")], BROKEN) == []
    assert differences([Expectation("sim-gptq", collapsed=True)], BROKEN) == []


def test_without_backend_and_prompt_all_are_meant():
    """A wildcard of a user's own case."""
    assert differences([Expectation(status="agree")], HEALTHY, BROKEN)[0] == "status: expected agree, happened overflow"


def test_an_expectation_of_what_did_not_run_did_not_hold():
    """Nothing happened is not what was expected."""
    (check,) = check_expectations([EXPECTED], [])
    assert check.seen is None
    assert check.differences == (f"expected overflow, at {DOWN}, accumulator-overflow, collapsed, and nothing ran",)


def test_an_expectation_in_words():
    """As reports say it."""
    assert Expectation(status="agree", collapsed=False).said == "agree, not collapsed"
