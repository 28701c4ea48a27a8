"""A check as JUnit XML: a suite a case, a test an expectation; the baseline and the self-test are tests of their own.

Elements and attributes are those of Jenkins' schema (gptq_diff.report.junit says where it is); GitHub's and GitLab's
readers take them too. A failure is what is not as expected, an error what could not be judged.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

from gptq_diff.records import ERROR, SKIPPED, CaseOutcome, Checked, CheckReport
from gptq_diff.report.check.words import details, grown_words, self_test_line
from gptq_diff.report.xml_text import fit
from gptq_diff.text import one_line

MESSAGE = 500
"""Characters of a message; the element's text has the rest."""


def check_junit(report: CheckReport) -> str:
    """The XML, indented, with its declaration. The time of a case stands at its first test."""
    root = ET.Element("testsuites", name="gptq-diff check")
    stamp = report.created[:19]
    root.append(_counted("self-test", [_self_test(report)], stamp))
    for case in report.cases:
        root.append(_counted(case.name, list(_tests(case)), stamp))
    for name in report.not_begun:
        test = _test(name, "case")
        _skip(test, "not begun: an earlier case did not hold")
        root.append(_counted(name, [test], stamp))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _tests(case: CaseOutcome) -> Iterator[ET.Element]:
    if case.state == SKIPPED:
        test = _test(case.name, "case", case.seconds)
        _skip(test, case.reason)
        yield test
        return
    seconds = case.seconds
    if case.state == ERROR:
        test = _test(case.name, "case", seconds)
        _tell(test, "error", "could-not-judge", case.reason or "could not be judged", "\n".join(details(case)))
        seconds = 0.0
        yield test
    for check in case.checks:
        yield _expectation(case, check, seconds)
        seconds = 0.0
    if case.regressions:
        test = _test(case.name, "baseline")
        lines = [grown_words(regression) for regression in case.regressions]
        _tell(test, "failure", "regression", lines[0], "\n".join(lines))
        yield test


def _expectation(case: CaseOutcome, check: Checked, seconds: float) -> ET.Element:
    name = ", ".join(part for part in (check.backend, check.prompt) if part) or "anything"
    test = _test(case.name, f"{name}: {check.expected.said}", seconds)
    if not check.held:
        body = [*check.differences, *([f"happened: {check.seen.summary}"] if check.seen is not None else [])]
        _tell(test, "failure", "expectation", "; ".join(check.differences), "\n".join([*body, *_about(case)]))
    return test


def _about(case: CaseOutcome) -> list[str]:
    planted = [f"planted: {case.planted}"] if case.planted else []
    versions = [f"{backend}: {', '.join(f'{k} {v}' for k, v in known.items())}" for backend, known in
                case.versions.items()]  # fmt: skip
    return [*planted, *versions, f"run: {case.run}"]


def _self_test(report: CheckReport) -> ET.Element:
    test = report.self_test
    found = _test("self-test", test.case or "self-test", test.outcome.seconds if test.outcome is not None else 0.0)
    if not test.sees:
        _tell(found, "error", "blind", self_test_line(report), test.reason)
    return found


def _counted(name: str, tests: Sequence[ET.Element], stamp: str) -> ET.Element:
    suite = ET.Element("testsuite", name=f"gptq-diff.{fit(name)}", tests=str(len(tests)), timestamp=stamp)
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(test.find(tag) is not None for test in tests)))
    suite.set("time", f"{sum(float(test.get('time', '0')) for test in tests):.3f}")
    suite.extend(tests)
    return suite


def _test(case: str, name: str, seconds: float = 0.0) -> ET.Element:
    return ET.Element("testcase", classname=f"gptq-diff.{fit(case)}", name=fit(name), time=f"{seconds:.3f}")


def _skip(test: ET.Element, reason: str) -> None:
    ET.SubElement(test, "skipped", message=fit(one_line(reason, MESSAGE)))


def _tell(test: ET.Element, tag: str, kind: str, message: str, body: str) -> None:
    ET.SubElement(test, tag, type=kind, message=fit(one_line(message, MESSAGE))).text = fit(body)
