"""Each form of a report, for every status, one prompt and 200, skipped backends, a run cut short, nothing at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.compare.results import verdict
from gptq_diff.records import PromptInfo, Report, SkippedBackend
from gptq_diff.report.redacted import redacted
from tests.report.build import STATUSES, a_report, a_result
from tests.report.test_any_report import FORMS

CUT = SkippedBackend("sim-gptq", "the run was interrupted when 1 of its 2 captures were whole", "logs/sim-gptq.log")
DEAD = SkippedBackend("vllm-gptq", "timed out after 600 s", "logs/vllm-gptq.log", ("loading weights", "Killed"))


def of(status: str, prompts: int) -> Report:
    """A reference and a backend that is of this status with the last prompt and agrees with the others."""
    names = [f"p{i}" for i in range(prompts)]
    results = [a_result("agree", "hf-fp32", p) for p in names]
    results += [a_result(status if p == names[-1] else "agree", prompt=p) for p in names]
    report = replace(a_report(*results), prompts=tuple(PromptInfo(p, 37, "cd" * 32) for p in names))
    return replace(report, reference_model=None, original_model=None)


def cut(status: str) -> Report:
    """The last backend finished one prompt of two; what it was with it decides."""
    report = of(status, 1)
    return replace(report, prompts=(*report.prompts, PromptInfo("p1", 51, "ef" * 32)), skipped_backends=(CUT,))


SITUATIONS = {
    **{f"{status}, one prompt": of(status, 1) for status in STATUSES},
    **{f"{status}, 200 prompts": of(status, 200) for status in STATUSES},
    **{f"{status}, cut short": cut(status) for status in STATUSES},
    **{f"{status}, a skipped backend": replace(of(status, 2), skipped_backends=(DEAD,)) for status in STATUSES},
    "nothing ran": replace(a_report(skipped=(DEAD, CUT)), verdict=verdict((), 12)),
}


def is_told(report: Report, form: str, text: str) -> bool:
    """Whether the verdict is; JUnit has elements for it, and none where all is well."""
    if form == "junit" and report.verdict.status == "agree":
        return 'failures="0"' in text
    if form == "junit" and not report.results:
        return "<error" in text
    return report.verdict.status in text or report.verdict.summary in text


@pytest.mark.parametrize("shared", [False, True], ids=["own", "redacted"])
@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "issue"])
def test_the_verdict_is_told_and_who_is_missing(form: str, name: str, shared: bool) -> None:
    """In every form: the verdict's sentence or its status, the backends that ran, and those that did not."""
    report = redacted(SITUATIONS[name]) if shared else SITUATIONS[name]
    text = " ".join(FORMS[form](report).replace("\\\\_", "_").split())
    assert is_told(report, form, text)
    for backend in dict.fromkeys(r.backend for r in report.results):
        assert backend in text
    for skipped in report.skipped_backends:
        assert skipped.backend in text
        assert skipped.reason.split(" when ")[0] in text


@pytest.mark.parametrize("form", ["html", "md", "junit"])
@pytest.mark.parametrize("status", STATUSES)
def test_one_failure_among_200_prompts_is_named(form: str, status: str) -> None:
    """Whoever reads it finds the prompt at which something happened; nothing of it is folded away."""
    text = FORMS[form](SITUATIONS[f"{status}, 200 prompts"])
    assert "p199" in text
    assert is_told(SITUATIONS[f"{status}, 200 prompts"], form, text)
