"""JUnit XML: valid by Jenkins' schema and read as it was meant by a reader of such files, for every status and text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import junitparser
import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st

from gptq_diff.records import Report, SkippedBackend
from gptq_diff.report.junit import junit
from tests.report.build import HOSTILE, STATUSES, a_report, a_result
from tests.report.test_markdown import many

SCHEMAS = Path(__file__).parent / "schemas"
JENKINS = xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd")
"""Of Jenkins' xunit plugin, MIT, as pytest ships it in its source distribution (testing/example_scripts)."""


def counts_are_right(suite: ET.Element) -> None:
    """What a suite says of its cases is what is in it; a schema cannot say so."""
    assert suite.get("tests") == str(len(suite))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(key) == str(len(suite.findall(f"testcase/{tag}")))
    assert all(len(case) <= 1 for case in suite)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp") or "")


def parsed(report: Report) -> ET.Element:
    text = junit(report)
    JENKINS.validate(text)
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for suite in root:
        counts_are_right(suite)
    return root


def read(report: Report) -> junitparser.JUnitXml:
    """As a reader of CI results takes it."""
    found = junitparser.JUnitXml.fromstring(junit(report).encode())
    assert isinstance(found, junitparser.JUnitXml)
    return found


def test_the_schema_refuses_what_is_wrong() -> None:
    """Or the tests below would prove nothing."""
    text = junit(a_report(a_result("overflow")))
    for wrong in (
        text.replace("<testcase ", "<test ").replace("</testcase>", "</test>"),
        text.replace(" tests=", " count=", 2),
        text.replace("<failure ", "<failure why='x' "),
    ):
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            JENKINS.validate(wrong)


SAYS = {"agree": None, "incomplete": "error"}


@pytest.mark.parametrize("status", STATUSES)
def test_every_status(status: str) -> None:
    """Numeric failures are failures, what could not be judged is an error, the rest is neither."""
    root = parsed(a_report(a_result("agree", "hf-fp32"), a_result(status)))
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["gptq-diff.hf-fp32", "gptq-diff.sim-exllama"]
    case = suites["gptq-diff.sim-exllama"][0]
    assert (case.get("classname"), case.get("name")) == ("gptq-diff.sim-exllama", "short")
    assert [child.tag for child in case] == [x for x in [SAYS.get(status, "failure")] if x]


def test_the_verdicts_sentence_is_the_message() -> None:
    report = a_report(a_result("overflow"))
    failure = parsed(report).find("testsuite/testcase/failure")
    assert failure is not None
    assert (failure.get("message"), failure.get("type")) == (report.verdict.summary, "overflow")


@pytest.mark.parametrize("allow", [True, False])
def test_a_skipped_backend(allow: bool) -> None:
    """An error for each prompt that it did not finish, as the exit code says; --allow-skip makes them skipped."""
    skipped = (SkippedBackend("sim-exllama", "it died", "log", ("last line",)), SkippedBackend("x", "no GPU", ""))
    root = parsed(replace(a_report(a_result(), skipped=skipped), allow_skip=allow))
    tag = "skipped" if allow else "error"
    assert [c.get("name") for c in root.findall(f"testsuite/testcase[{tag}]")] == ["long", "short", "long"]
    assert {e.get("message") for e in root.iter(tag)} == {"it died", "no GPU"}


def test_nothing_ran() -> None:
    """Still a suite, with an error: readers refuse a file without one."""
    root = parsed(a_report())
    assert root.find("testsuite/testcase/error") is not None


@pytest.mark.parametrize("count", [1, 200])
def test_one_prompt_and_many(count: int) -> None:
    assert len(parsed(many(count, "said")).findall("testsuite[@name='gptq-diff.a']/testcase")) == count


@pytest.mark.parametrize("status", STATUSES)
def test_a_reader_of_ci_results_counts_the_same(status: str) -> None:
    """junitparser, which merges and uploads such files: suites, failures, errors, messages and seconds."""
    result = replace(a_result(status), seconds={"generate": 2.5})
    report = a_report(a_result("agree", "hf-fp32"), result)
    found = read(report)
    numeric, unjudged = status not in ("agree", "incomplete"), status == "incomplete"
    assert (found.tests, found.failures, found.errors) == (2, int(numeric), int(unjudged))
    suites = {suite.name: list(suite) for suite in found}
    (case,) = suites["gptq-diff.sim-exllama"]
    assert (case.classname, case.name, case.time) == ("gptq-diff.sim-exllama", "short", 2.5)
    assert case.is_passed == (status == "agree")
    assert [type(r).__name__ for r in case.result] == ["Failure"] * numeric + ["Error"] * unjudged
    if numeric:
        assert (case.result[0].message, case.result[0].type) == (report.verdict.summary, status)
        assert "kernel: *: exllama" in case.result[0].text


@pytest.mark.parametrize("allow", [True, False])
def test_a_reader_counts_a_skipped_backend_as_the_exit_code_does(allow: bool) -> None:
    skipped = (SkippedBackend("x", "no GPU", "", ("the last line",)),)
    found = read(replace(a_report(a_result(), skipped=skipped), allow_skip=allow))
    assert (found.skipped, found.errors) == ((2, 0) if allow else (0, 2))
    (suite,) = [suite for suite in found if suite.name == "gptq-diff.x"]
    assert all(case.is_skipped == allow for case in suite)
    assert allow or "the last line" in next(iter(suite)).result[0].text


def test_a_reader_merges_two_runs(tmp_path: Path) -> None:
    """As a CI job does with the files of several steps; what is written can be read again."""
    both = read(a_report(a_result("overflow"))) + read(a_report(a_result("agree")))
    both.update_statistics()
    both.write(str(tmp_path / "both.xml"))
    again = junitparser.JUnitXml.fromfile(str(tmp_path / "both.xml"))
    assert (again.tests, again.failures) == (both.tests, both.failures) == (2, 1)


@given(st.text())
def test_any_text_makes_sound_xml(text: str) -> None:
    result = replace(a_result("overflow", text, text), kernel={text: text})
    report = a_report(result, skipped=(SkippedBackend("x", text, text, (text,)),))
    parsed(replace(report, verdict=replace(report.verdict, summary=text)))


def test_terminal_codes_are_gone() -> None:
    report = a_report(a_result(), skipped=(SkippedBackend("x", HOSTILE, "", (HOSTILE,)),))
    assert "\x1b" not in junit(report)
    assert "\u202e" not in junit(report)
