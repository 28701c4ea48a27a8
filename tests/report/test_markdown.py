"""The Markdown report: every status, any size, and nothing that a model or a user wrote does anything in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.records import Finding, PromptInfo, Report, Result, SkippedBackend, Workaround
from gptq_diff.report.markdown import LIMIT, markdown
from tests.report.build import HOSTILE, LAYERS, STATUSES, a_report, a_result, an_original, judgements
from tests.report.test_markdown_text import HOSTILE_TEXTS, tokens_of

JUDGED = {("sim-exllama", "short"): judgements()}


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_told_first(status: str) -> None:
    """The verdict's sentence is the first paragraph, in bold."""
    report = a_report(a_result("agree", "hf-fp32"), a_result(status))
    found = tokens_of(markdown(report, JUDGED))
    bold = next(i for i, t in enumerate(found) if t.type == "strong_open")
    end = next(i for i, t in enumerate(found) if t.type == "strong_close")
    said = "".join(t.content for t in found[bold:end]).replace("\u200b", "")
    assert said == report.verdict.summary
    assert found[1].content == f"gptq-diff: {report.verdict.status}"


def test_the_matrix_names_prompts_backends_and_the_first_bad_layer() -> None:
    report = a_report(a_result("agree", "hf-fp32"), a_result("overflow"), a_result("agree", prompt="long"))
    text = markdown(report, {})
    assert "| prompt (tokens) | `hf-fp32`\\* | `sim-exllama` |" in text
    assert "| `short` (37) | agree | **overflow, collapsed** at `1.mlp.down_proj` |" in text
    assert "| `long` (63) | did not finish | agree |" in text


def test_it_has_what_an_issue_needs() -> None:
    """Cause with evidence, what was tried, kernels, environment, what was skipped, the linears around."""
    bad = replace(
        a_result("overflow"),
        findings=(Finding("accumulator-overflow", 0.9, ("a sum of 70,000",), LAYERS[5]),),
        workarounds=(Workaround.run("padding", "51 rows: agrees", works=True), Workaround("marlin", False, None, "K")),
    )
    text = markdown(a_report(bad, skipped=(SkippedBackend("hf-fp16", "it died", "log", ("secret",)),)), JUDGED)
    for part in (
        "- **accumulator-overflow** at `model.layers.1.mlp.down_proj` (confidence 0.9): sim-exllama, short",
        "  - a sum of 70,000", "  - **works**: padding: 51 rows: agrees", "  - not tried: marlin: K",
        "- `hf-fp16` was skipped: it died", "`model.layers.1.mlp.down_proj` | 1e+05 |", "**overflow**: 2 inf/NaN",
        "engine `transformers`: `*`: `exllama`", "- python: `3.11.7`", "Reference model:",
    ):  # fmt: skip
        assert part in text, part
    assert "secret" not in text  # logs are not for an issue


def test_the_unquantised_model_is_not_judged() -> None:
    text = markdown(a_report(a_result(), an_original()), {})
    assert "| `short` (37) | agree | not judged |" in text
    assert "Unquantised model:" in text
    assert "quantisation itself changes" in text


def test_no_result_at_all() -> None:
    """A run that was cut short before anything was captured."""
    text = markdown(a_report(skipped=(SkippedBackend("hf-fp32", "the run was interrupted", ""),)), {})
    assert "Nothing was compared" in text
    assert "No backend finished a prompt." in text
    assert "`hf-fp32` was skipped: the run was interrupted" in text


def many(count: int, text: str) -> Report:
    """Five backends on so many prompts, a tenth of which fail, all text as long and as hostile as can be."""
    finding = Finding("accumulator-overflow", 0.9, tuple(f"{i} {text}" for i in range(6)), LAYERS[5])
    workarounds = tuple(Workaround(f"{i} {text}", True, i % 2 == 0, text) for i in range(3))
    results: list[Result] = []
    for i in range(count):
        for backend in ("hf-fp32", "a", "b", "c", "d"):
            one = a_result("overflow" if i % 10 == 9 and backend != "hf-fp32" else "agree", backend, f"p{i}-{'x' * 60}")
            unlike = replace(finding, confidence=1 / (len(results) + 1))
            results.append(replace(one, text=text, findings=(unlike,), workarounds=workarounds))
    report = a_report(*results)
    prompts = tuple(PromptInfo(f"p{i}-{'x' * 60}", 37, "0" * 64) for i in range(count))
    skipped = tuple(SkippedBackend(f"s{i}", text, "") for i in range(50))
    return replace(
        report, prompts=prompts, skipped_backends=skipped, environment=dict.fromkeys(map(str, range(99)), text),
        verdict=replace(report.verdict, summary=f"Words first. {text}"), model=replace(report.model, path=text),
    )  # fmt: skip


@pytest.mark.parametrize("text", ["fine", "@" * 1200, "&|<" * 400, "字" * 1200])
@pytest.mark.parametrize("count", [1, 200])
def test_it_fits_into_a_comment(count: int, text: str) -> None:
    """65,536 characters; what fails comes first where not all prompts fit."""
    said = markdown(many(count, text), JUDGED)
    assert len(said) < LIMIT
    if count == 200:
        assert said.index("p9-") < said.index("p0-")


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_nothing_that_is_not_ours_does_anything(text: str) -> None:
    """Read by a parser, there is no link or image, and the only HTML is ours, in balance."""
    report = many(3, text)
    model = replace(report.model, architecture=text, format=text, fingerprint=text)
    results = tuple(
        replace(r, kernel={text: text}, engine=text, versions={text: text}, backend=f"{r.backend}{text}")
        for r in report.results
    )
    found = tokens_of(markdown(replace(report, model=model, results=results, left_out=(text,)), {}))
    kinds = {t.type for t in found}
    assert not kinds & {"link_open", "image", "fence", "code_block", "blockquote_open", "s_open"}
    html = " ".join(t.content.strip() for t in found if t.type.startswith("html"))
    assert html.count("<details>") == html.count("</details>") > 0
    for tag in ("details", "summary", "sub"):
        html = html.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    assert "<" not in html
    assert sum(t.type == "heading_open" for t in found) <= 4


def test_terminal_codes_are_gone() -> None:
    assert "\x1b" not in markdown(many(1, HOSTILE), JUDGED)


def test_rows_of_a_prefix_cache_are_told() -> None:
    """Beside the status that was judged without them."""
    text = markdown(a_report(a_result("agree", "hf-fp32"), replace(a_result("agree"), cached_rows=32)), {})
    assert "| `short` (37) | agree | agree (32 rows cached) |" in text
