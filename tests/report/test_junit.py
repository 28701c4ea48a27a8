"""JUnit XML: held against the structure of the schema that Jenkins publishes, for every status and any text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptq_diff.records import Report, SkippedBackend
from gptq_diff.report.junit import junit
from tests.report.build import HOSTILE, STATUSES, a_report, a_result
from tests.report.test_markdown import many

# junit-10.xsd of Jenkins' xunit plugin, as far as we use it: attribute -> (required, pattern), children in any order.
NUMBER, SECONDS, ANY = r"\d+", r"\d+\.\d+", r"(?s).*"
SCHEMA: dict[str, tuple[dict[str, tuple[bool, str]], set[str]]] = {
    "testsuites": (
        {"name": (False, ANY), "tests": (False, NUMBER), "failures": (False, NUMBER), "errors": (False, NUMBER)},
        {"testsuite"},
    ),
    "testsuite": (
        {
            "name": (True, ANY), "tests": (True, NUMBER), "failures": (False, NUMBER), "errors": (False, NUMBER),
            "skipped": (False, NUMBER), "time": (False, SECONDS),
            "timestamp": (False, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"),
        },
        {"testcase"},
    ),
    "testcase": (
        {"name": (True, ANY), "classname": (False, ANY), "time": (False, SECONDS)}, {"skipped", "error", "failure"},
    ),
    "skipped": ({"message": (False, ANY), "type": (False, ANY)}, set()),
    "error": ({"message": (False, ANY), "type": (False, ANY)}, set()),
    "failure": ({"message": (False, ANY), "type": (False, ANY)}, set()),
}  # fmt: skip


def valid(element: ET.Element) -> None:
    """Names, attributes, children and the counts of every suite."""
    attributes, children = SCHEMA[element.tag]
    assert set(element.keys()) <= attributes.keys()
    for name, (required, pattern) in attributes.items():
        value = element.get(name)
        assert value is not None or not required, (element.tag, name)
        assert value is None or re.fullmatch(pattern, value), (element.tag, name, value)
    for child in element:
        assert child.tag in children
        valid(child)
    if element.tag == "testsuite":
        assert element.get("tests") == str(len(element))
        for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(key) == str(len(element.findall(f"testcase/{tag}")))
    if element.tag == "testcase":
        assert len(element) <= 1


def parsed(report: Report) -> ET.Element:
    root = ET.fromstring(junit(report).encode())
    assert root.tag == "testsuites"
    valid(root)
    return root


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


@given(st.text())
def test_any_text_makes_sound_xml(text: str) -> None:
    result = replace(a_result("overflow", text, text), kernel={text: text})
    report = a_report(result, skipped=(SkippedBackend("x", text, text, (text,)),))
    parsed(replace(report, verdict=replace(report.verdict, summary=text)))


def test_terminal_codes_are_gone() -> None:
    report = a_report(a_result(), skipped=(SkippedBackend("x", HOSTILE, "", (HOSTILE,)),))
    assert "\x1b" not in junit(report)
    assert "\u202e" not in junit(report)
