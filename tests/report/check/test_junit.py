"""A check's JUnit XML: valid by Jenkins' schema, whatever the texts hold; every state is what CI systems expect."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import junitparser
import pytest

from gptq_diff.records import FAILED, HELD, CaseOutcome
from gptq_diff.report.check.junit import check_junit
from tests.report.build import HOSTILE
from tests.report.check.build import a_report, cases
from tests.report.test_junit import JENKINS, counts_are_right


def parsed(report):
    text = check_junit(report)
    JENKINS.validate(text)
    root = ET.fromstring(text.encode())
    for suite in root:
        counts_are_right(suite)
    return {suite.get("name"): suite for suite in root}


def tags(suite):
    return [[child.tag for child in test] for test in suite]


def test_every_state():
    """Held passes, what is otherwise fails, skipped is skipped, what could not be judged is an error."""
    suites = parsed(a_report())
    assert list(suites) == [f"gptq-diff.{name}" for name in ("self-test", "good", "bad", "grown", "gpu", "gone")]
    assert tags(suites["gptq-diff.self-test"]) == [[]]
    assert tags(suites["gptq-diff.good"]) == [[]]
    assert tags(suites["gptq-diff.bad"]) == [[], ["failure"]]
    assert tags(suites["gptq-diff.grown"]) == [[], ["failure"]]
    assert tags(suites["gptq-diff.gpu"]) == [["skipped"]]
    assert tags(suites["gptq-diff.gone"]) == [["error"]]


def test_a_test_says_what_is_expected_and_a_failure_what_happened():
    """In the test's name, and in the failure's message and text, with the fault and the versions."""
    suites = parsed(a_report())
    (test,) = suites["gptq-diff.good"]
    layer = "model.layers.1.mlp.down_proj"
    assert test.get("name") == f"sim-gptq, short: overflow, at {layer}, accumulator-overflow, collapsed"
    failure = suites["gptq-diff.bad"][1][0]
    assert failure.get("message") == "status: expected agree, happened diverged"
    for piece in ("happened: diverged", "planted: a fault", "hf-fp16: torch 2.13.0"):
        assert piece in failure.text
    regression = suites["gptq-diff.grown"][1][0]
    assert "1.4 times" in regression.get("message")
    assert "4.00e-04 to 9.00e-04" in regression.text


def test_times_are_counted_once():
    """A case's seconds stand at its first test, and sum up in its suite."""
    suites = parsed(a_report())
    assert [test.get("time") for test in suites["gptq-diff.bad"]] == ["3.000", "0.000"]
    assert suites["gptq-diff.bad"].get("time") == "3.000"


def test_a_blind_guard_is_an_error():
    """The job is red though every case is green."""
    suites = parsed(a_report(cases()[0], sees=False))
    (error,) = suites["gptq-diff.self-test"][0]
    assert (error.tag, error.get("type")) == ("error", "blind")
    assert "this guard does not see" in error.get("message")


def test_what_was_not_begun_is_skipped():
    """It is in the file, so that a reader sees that it did not run."""
    suites = parsed(a_report(cases()[1], not_begun=("later",)))
    assert suites["gptq-diff.later"][0][0].tag == "skipped"


def test_a_reader_of_such_files_takes_it_as_it_was_meant():
    """junitparser counts the same tests, failures, errors and skips."""
    found = junitparser.JUnitXml.fromstring(check_junit(a_report()).encode())
    found.update_statistics()
    assert (found.tests, found.failures, found.errors, found.skipped) == (8, 2, 1, 1)
    results = {case.classname: [type(r).__name__ for r in case.result] for suite in found for case in suite}
    assert results["gptq-diff.gpu"] == ["Skipped"]
    assert results["gptq-diff.gone"] == ["Error"]
    assert results["gptq-diff.grown"] == ["Failure"]


def test_the_totals():
    """Counted over all suites."""
    root = ET.fromstring(check_junit(a_report()).encode())
    assert {key: root.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "8", "failures": "2", "errors": "1",
    }  # fmt: skip


@pytest.mark.parametrize("text", [HOSTILE, "]]><evil/>", "\ud800\x00\ufffe", "\"&<>'"])
def test_any_text_is_text(text):
    """Reasons come from logs and models."""
    parsed(a_report(text=text))
    parsed(a_report(sees=False, text=text))
    parsed(a_report(CaseOutcome(f"name{text}", HELD), CaseOutcome("x", FAILED, text)))
