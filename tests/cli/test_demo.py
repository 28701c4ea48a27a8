"""`gptq-diff demo`: what counts as having found what was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.cli import demo
from gptq_diff.cli.demo import BACKENDS, EXPECTED, LONG, PLANTED_LAYER, SHORT, differences
from gptq_diff.records import Report, Result
from tests.report.build import a_report, a_result

Program = Callable[..., tuple[int, str, str]]


def as_planted() -> list[Result]:
    """A result for everything that is expected, as expected."""
    results = []
    for (backend, prompt), status in EXPECTED.items():
        result = a_result(status, backend, prompt)
        if result.first_bad is not None:
            result = replace(result, first_bad=replace(result.first_bad, layer=PLANTED_LAYER))
        else:
            result = replace(result, text="The capital of France is Paris", collapsed=False)
        results.append(result)
    return results


def report_with(change: Callable[[Result], Result], backend: str = "sim-exllama") -> Report:
    return a_report(*(change(r) if (r.backend, r.prompt) == (backend, "short") else r for r in as_planted()))


def test_what_was_planted_is_accepted() -> None:
    assert differences(a_report(*as_planted())) == []


CHANGES: dict[str, tuple[str, Callable[[Result], Result]]] = {
    "another status": ("sim-exllama", lambda r: replace(r, status="nan")),
    "another layer": ("sim-exllama", lambda r: replace(r, first_bad=a_result("overflow").first_bad)),
    "no layer": ("sim-exllama", lambda r: replace(r, first_bad=None)),
    "no collapse": ("sim-exllama", lambda r: replace(r, collapsed=False)),
    "another token": ("sim-exllama", lambda r: replace(r, collapse_token=5)),
    "another answer": ("hf-fp16", lambda r: replace(r, text="London")),
    "no text": ("hf-fp16", lambda r: replace(r, text=None)),
    "a false alarm": ("hf-fp16", lambda r: replace(r, status="diverged")),
    "one that did not run": ("hf-fp16", lambda r: replace(r, prompt="other")),
}


@pytest.mark.parametrize(("backend", "change"), CHANGES.values(), ids=CHANGES)
def test_what_differs_is_named(backend: str, change: Callable[[Result], Result]) -> None:
    (line,) = differences(report_with(change, backend))
    assert line.startswith(f"{backend} on short: ")


def test_a_backend_that_could_not_run_is_passed_over() -> None:
    """It cannot be judged, which is another matter than not finding what was planted."""
    report = a_report(*(r for r in as_planted() if r.backend != "sim-gptq"))
    assert differences(report)
    assert differences(report, {"sim-gptq"}) == []


def test_the_expectations_are_those_of_the_reported_bug() -> None:
    """Every backend on both prompts; the fast path breaks on both, vLLM's choice on the short one alone."""
    assert {backend for backend, _ in EXPECTED} == set(BACKENDS.split(","))
    assert {prompt for _, prompt in EXPECTED} == {"short", "long"}
    broken = {key for key, status in EXPECTED.items() if status != "agree"}
    assert broken == {("sim-exllama", "short"), ("sim-exllama", "long"), ("sim-gptq", "short")}
    assert SHORT != LONG


@pytest.mark.usefixtures("here")
def test_a_demo_that_finds_something_else_fails(
    program: Program, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model without the planted defect: exit 1, saying what is missing; --json still prints the report alone."""
    from gptq_diff.models import build

    monkeypatch.setattr(build, "build_model", lambda *_: small_model)
    monkeypatch.setattr(demo, "BACKENDS", "hf-fp32,sim-exllama")
    code, out, err = program("demo", "--json", "--out", tmp_path / "run")
    assert code == 1
    assert json.loads(out)["verdict"]["status"] == "agree"
    assert "not as planted: sim-exllama on short: agree, expected overflow" in err
    assert "Found what was planted" not in err


@pytest.mark.slow
def test_the_demo_finds_what_was_planted(program: Program, tmp_path: Path) -> None:
    """The whole of it, on the real model: exit 0, and the sentence that says so."""
    code, out, err = program("demo", "--out", tmp_path / "run")
    assert (code, out) == (0, "")
    assert "Found what was planted" in err
    assert "short (37)" in err
    assert "long (64)" in err
    assert f"{PLANTED_LAYER} is the first layer to break" in " ".join(err.replace("│", " ").split())
