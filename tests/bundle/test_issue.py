"""ISSUE.md for every status, any size and hostile names: a form that is filled in, and text that does nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.bundle.issue import Material, issue, project_of, title
from gptq_diff.bundle.repro import Repro
from gptq_diff.report.redacted import redacted
from tests.report.build import STATUSES, a_report, a_result
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
