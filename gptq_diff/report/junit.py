"""The report as JUnit XML, as GitHub's, GitLab's and Jenkins' readers take it: a suite a backend, a case a prompt.

Elements and attributes are those of Jenkins' schema for JUnit (junit-10.xsd of
https://github.com/jenkinsci/xunit-plugin): testsuites > testsuite > testcase > skipped | error | failure.
A failure is a numeric failure that was found; an error is a case that could not be judged.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from gptq_diff.records import Report, Result, SkippedBackend
from gptq_diff.report.cleaned import cleaned
from gptq_diff.report.xml_text import fit
from gptq_diff.text import one_line

MESSAGE = 500
"""Characters of a message; the element's text has the rest."""
FAILURES = frozenset({"overflow", "nan", "diverged", "collapsed", "nondeterministic"})


def junit(report: Report) -> str:
    """The XML, indented, with its declaration. Times are of generating, in seconds."""
    report = cleaned(report, fit)
    root = ET.Element("testsuites", name="gptq-diff")
    stamp = report.created[:19]
    for backend in dict.fromkeys(r.backend for r in report.results):
        results = [r for r in report.results if r.backend == backend]
        skipped = next((s for s in report.skipped_backends if s.backend == backend), None)
        root.append(_suite(report, backend, results, skipped, stamp))
    ran = {r.backend for r in report.results}
    for skipped in (s for s in report.skipped_backends if s.backend not in ran):
        root.append(_suite(report, skipped.backend, [], skipped, stamp))
    if not len(root):
        root.append(_nothing(report, stamp))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(
    report: Report, backend: str, results: Sequence[Result], skipped: SkippedBackend | None, stamp: str
) -> ET.Element:
    cases = [_case(report, r) for r in results]
    if skipped is not None:
        done = {r.prompt for r in results}
        prompts = [p.id for p in report.prompts if p.id not in done] or ["(no prompt)"]
        cases += [_skipped_case(backend, prompt, skipped, allowed=report.allow_skip) for prompt in prompts]
    return _counted(backend, cases, stamp)


def _counted(name: str, cases: Sequence[ET.Element], stamp: str) -> ET.Element:
    suite = ET.Element("testsuite", name=f"gptq-diff.{name}", tests=str(len(cases)), timestamp=stamp)
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
    suite.extend(cases)
    return suite


def _new_case(backend: str, prompt: str, seconds: float = 0.0) -> ET.Element:
    return ET.Element("testcase", classname=f"gptq-diff.{backend}", name=prompt, time=f"{seconds:.3f}")


def _case(report: Report, r: Result) -> ET.Element:
    case = _new_case(r.backend, r.prompt, r.seconds.get("generate", 0.0))
    if r.status in FAILURES:
        _tell(case, "failure", r.status, _sentence(report, r), _body(r))
    elif r.status == "incomplete":
        _tell(case, "error", "incomplete", _sentence(report, r), _body(r))
    return case


def _skipped_case(backend: str, prompt: str, skipped: SkippedBackend, *, allowed: bool) -> ET.Element:
    """Skipped where --allow-skip says so, else an error: the run's exit code is then 3 as well."""
    case = _new_case(backend, prompt)
    if allowed:
        ET.SubElement(case, "skipped", message=one_line(skipped.reason, MESSAGE))
    else:
        _tell(case, "error", "skipped-backend", skipped.reason, "\n".join((skipped.reason, *skipped.log_end)))
    return case


def _nothing(report: Report, stamp: str) -> ET.Element:
    """A suite for a run in which no backend got anywhere: no reader takes a file without one."""
    case = _new_case("run", "run")
    _tell(case, "error", report.verdict.status, report.verdict.summary, report.verdict.summary)
    return _counted("run", [case], stamp)


def _tell(case: ET.Element, tag: str, kind: str, message: str, body: str) -> None:
    ET.SubElement(case, tag, type=kind, message=one_line(message, MESSAGE)).text = body


def _sentence(report: Report, r: Result) -> str:
    """The verdict's own sentence where it speaks of this result."""
    if (r.backend, r.prompt) == (report.verdict.backend, report.verdict.prompt):
        return report.verdict.summary
    bad = r.first_bad
    if bad is None:
        return f"{r.status}: compared {r.layers.compared} of {report.model.quantized_linears} linears"
    lost = f"{bad.nonfinite} of {bad.elements} outputs infinite or NaN" if bad.nonfinite else "beyond rounding"
    error = "" if bad.local_l2_rel is None or bad.nonfinite else f", relative l2 error {bad.local_l2_rel:.2g}"
    return f"{r.status} at {bad.layer}, step {bad.step}: {lost}{error}"


def _body(r: Result) -> str:
    lines = [f"status: {r.status}", f"kernel: {'; '.join(f'{k}: {v}' for k, v in list(r.kernel.items())[:20])}"]
    if r.collapsed:
        lines.append(f"collapsed to token {r.collapse_token}")
    for f in r.findings:
        lines += [f"{f.cause} (confidence {f.confidence:.2g}){f' at {f.layer}' if f.layer else ''}", *f.evidence]
    lines += [f"{_word(w.works)}: {w.name}: {w.detail}" for w in r.workarounds]
    return "\n".join(lines)


def _word(works: bool | None) -> str:
    return {True: "works", False: "no help", None: "not tried"}[works]
