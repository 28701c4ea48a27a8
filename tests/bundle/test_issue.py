"""ISSUE.md for every status, any size and hostile names: a form that is filled in, and text that does nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.bundle.issue import Material, issue, project_of, title
from gptq_diff.bundle.repro import Repro
from gptq_diff.reduce import script as script_module
from gptq_diff.report.redacted import redacted
from tests.report.build import STATUSES, a_report, a_result, first_bad
from tests.report.test_markdown import many
from tests.report.test_markdown_text import HOSTILE_TEXTS, tokens_of
from tests.report.test_redacted import full_report

REPRO = Repro(
    "print(1)\n", True, {"vllm": "0.20.2", "gpu": "NVIDIA H100"}, (37, 1536, 576), (1, 128, 8), 1, ("inf", 1.0),
    ("1", 1.0), "",
)  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("engine", ["transformers", "vllm", "gptqmodel", "auto_gptq"])
def test_every_status_and_engine(status: str, engine: str) -> None:
    """No part stays empty, and the title names none of the run's own names."""
    report = redacted(full_report(status))
    report = replace(report, results=tuple(replace(r, engine=engine) for r in report.results))
    text = issue(Material(report, REPRO, "", {"rows/a/b.safetensors": (1, "")}))
    assert (project_of(report) == "GPTQModel") == (engine in ("gptqmodel", "auto_gptq") and status != "agree")
    assert ("Do not file it" in text) == (status == "agree")
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [
        i for i, line in enumerate(lines) if line.startswith("#") or (line.startswith("**") and line.endswith("**"))
    ]
    empty = [
        lines[i] for i in heads
        if i + 1 == len(lines) or (i + 1 in heads and not lines[i + 1].startswith("####"))
    ]  # fmt: skip
    assert empty == []
    assert "short" not in title(report)
    assert f"{report.verdict.status}" in text or status == "agree"


VLLM_FORM = (
    "### Your current environment", "### \N{BUG} Describe the bug", "#### Minimal example",
    "#### The same on transformers", "#### Error message and logs", "### Before submitting a new issue...",
)  # fmt: skip
"""What 400-bug-report.yml asks, in its order; the three in between are asked for in the description's help."""
GPTQMODEL_FORM = (
    "**Describe the bug**", "**Hardware details**", "**Software version**", "**To Reproduce**", "**Expected behavior**",
    "**Screenshots**", "**Additional context**",
)  # fmt: skip
"""The headings of bug_report.md."""


@pytest.mark.parametrize(("engine", "form"), [("vllm", VLLM_FORM), ("gptqmodel", GPTQMODEL_FORM)])
def test_every_question_of_the_form_is_asked_in_its_order(engine: str, form: tuple[str, ...]) -> None:
    """A field that is left out is a field that somebody has to ask for."""
    report = redacted(full_report())
    report = replace(report, results=tuple(replace(r, engine=engine) for r in report.results))
    lines = issue(Material(report, REPRO)).splitlines()
    places = [lines.index(question) for question in form]
    assert places == sorted(places)


def test_what_was_not_recorded_is_said_to_be_so() -> None:
    """vLLM asks for collect_env.py, GPTQModel for nvidia-smi and pip show: each is answered or declined."""
    report = redacted(full_report())
    assert "`collect_env.py` itself was not run: " in issue(Material(report, REPRO))
    results = tuple(replace(r, engine="gptqmodel", versions={"gptqmodel": "7.7.0"}) for r in report.results)
    text = issue(Material(replace(report, results=results, environment={}), REPRO))
    assert "Operating system: not recorded" in text
    assert "`nvidia-smi`: no GPU was used." in text
    assert "gptqmodel `7.7.0`, transformers (not recorded), accelerate (not recorded)" in text


def test_it_begins_for_somebody_who_knows_nothing_of_the_run() -> None:
    """The first sentence names the kernel by the engine's words, what is wrong and how many rows it takes."""
    report = redacted(full_report())
    worst = replace(report.results[1], first_bad=replace(first_bad("overflow"), path="exllama-fast"))
    report = replace(report, results=(report.results[0], worst), verdict=replace(report.verdict, backend=worst.backend))
    lines = issue(Material(report, REPRO)).splitlines()
    told = lines[lines.index("### \N{BUG} Describe the bug") + 2]
    assert told.startswith("With a GPTQ checkpoint of 4 bit (group_size 64), the fused path of the exllama GPTQ kernel")
    assert (
        "gives infinite outputs for a call of 37 rows, although the exact answer is finite and at most 21,835" in told
    )


@pytest.mark.parametrize("live", [True, False])
def test_what_the_script_prints_stands_beside_it(live: bool) -> None:
    """As the script itself writes it; of a simulation it is called a prediction."""
    text = issue(Material(redacted(full_report()), replace(REPRO, live=live)))
    assert ("prints (predicted):" in text) == (not live)
    assert "failing: exact 1, expected here inf, saw inf: WRONG" in text
    script = (Path(script_module.__file__)).read_text()
    assert 'print(f"{name}: exact {exact[AT]:.6g}, expected here {expected}, saw {y[AT]:.6g}:"' in script


def test_a_live_repro_names_where_it_was_seen() -> None:
    text = issue(Material(redacted(full_report()), REPRO))
    assert "Seen on vllm `0.20.2`, gpu `NVIDIA H100`." in text
    assert "not seen on a GPU" not in text


def test_a_fence_in_the_script_does_not_end_it() -> None:
    script = replace(REPRO, text='"""\n```\n# @everyone\n"""\n')
    found = tokens_of(issue(Material(redacted(full_report()), script)))
    assert script.text.rstrip() in [t.content.rstrip() for t in found if t.type == "fence"]
    assert "everyone" not in "".join(t.content for t in found if t.type == "text")


@pytest.mark.parametrize("count", [1, 200])
def test_it_fits_into_an_issue(count: int) -> None:
    """However many prompts, and however long each of them is."""
    report = many(count, "words " * 100)
    for shared in (redacted(report), report):
        text = issue(Material(shared, REPRO, token_ids=tuple(range(5000)), prompts=True))
        assert len(text) < 65_536


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_names_of_prompts_do_nothing(text: str) -> None:
    """--include-prompts shows what users wrote."""
    report = replace(a_report(a_result("overflow", prompt=text)), environment={"python": text, "gpu": text})
    found = tokens_of(issue(Material(redacted(report, include_prompts=True), None, text, prompts=True)))
    links = [t.attrs["href"] for t in found if t.type == "link_open"]
    assert len(links) == 1
    assert str(links[0]).startswith("https://github.com/vllm-project/vllm/issues/new")
    assert not [t for t in found if t.type == "image"]
    assert "evil" not in " ".join(t.content for t in found if t.type.startswith("html"))
