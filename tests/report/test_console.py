"""The report on a terminal: every status, every width, and text that means harm."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from gptq_diff.records import Finding, LayerCount, Report, SkippedBackend, SkippedLayer
from gptq_diff.report.console import show
from tests.report.build import BAD, HOSTILE, LAYERS, STATUSES, a_report, a_result, judgements

Judged = dict[tuple[str, str], list]  # type: ignore[type-arg]


def shown(report: Report, judged: Judged | None = None, *, width: int = 120, every: bool = False) -> str:
    """What a terminal of that width gets, colours and all left out."""
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False, highlight=False, color_system=None)
    show(console, report, judged or {}, every_layer=every)
    return out.getvalue()


@pytest.mark.parametrize("width", [36, 60, 80, 120, 250])
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_on_every_width(status: str, width: int) -> None:
    """No exception, no line too wide, and the verdict can be read whole."""
    report = a_report(a_result("agree", "hf-fp32"), a_result(status))
    text = shown(report, {("sim-exllama", "short"): judgements()}, width=width)
    assert max(map(len, text.splitlines())) <= width
    panel = text[text.index("╭") :]
    words = panel.replace("│", " ").split()
    assert status in words
    position = iter(words)
    assert all(word in position for word in report.verdict.summary.split() if len(word) < 29)  # longer ones break


def test_no_result_at_all() -> None:
    text = shown(a_report(skipped=(SkippedBackend("hf-fp32", "its worker was killed", "logs/hf-fp32.log"),)))
    assert "skipped hf-fp32: its worker was killed (log: logs/hf-fp32.log)" in text
    assert "Nothing was compared" in text


def test_the_table_has_a_row_for_every_result() -> None:
    text = shown(a_report(a_result("agree", "hf-fp32"), a_result("overflow"), a_result("diverged", prompt="long")))
    lines = text.splitlines()
    (reference,) = (line for line in lines if line.startswith("hf-fp32*"))
    assert reference.split()[1:4] == ["short", "(37)", "agree"]
    (overflow,) = (line for line in lines if "overflow, collapsed" in line)
    assert LAYERS[BAD].removeprefix("model.layers.") in overflow
    assert "11/12" in overflow
    assert any("(step 1)" in line for line in lines)


def test_the_layers_around_the_first_bad_one() -> None:
    """Four on both sides by default; the whole step when asked."""
    report = a_report(a_result("overflow"))
    judged = {("sim-exllama", "short"): judgements()}
    text = shown(report, judged)
    assert "linears 1 to 9 of 12 in step 0" in text
    assert LAYERS[0] not in text
    assert "overflow: 2 inf/NaN" in text
    assert "input lost" in text
    everything = shown(report, judged, every=True)
    assert all(layer in everything for layer in LAYERS)
    assert "3 of 37 rows lost" in everything


def test_without_stored_judgements_there_is_no_table_of_layers() -> None:
    """Nor where those of the bad step are missing."""
    assert "in step" not in shown(a_report(a_result("overflow")))
    assert "in step" not in shown(a_report(a_result("diverged")), {("sim-exllama", "short"): judgements(step=0)})


def test_findings_skipped_linears_and_what_was_left_out_are_said() -> None:
    text = shown(a_report(a_result("nondeterministic"), a_result("overflow", "sim-gptq")))
    assert f"sim-exllama, short: race-or-uninitialised at {LAYERS[2]}: 3 linears gave other bits" in text
    assert "sim-gptq, short: 1 linears not compared: its input was already NaN or infinite" in text
    assert "2 of 2 captures keep less" in text


def test_without_a_tokenizer_the_ids_are_shown() -> None:
    assert "0 0 0 0" in shown(a_report(replace(a_result(), text=None)))


@pytest.mark.parametrize("width", [40, 120])
def test_hostile_text_stays_text(width: int) -> None:
    """Nothing from a model, a log or somebody else's run reaches the terminal as a control character or as markup."""
    bad = replace(a_result("overflow").first_bad or a_result(), layer=HOSTILE)
    layers = LayerCount(11, (SkippedLayer(HOSTILE, HOSTILE),))
    findings = (Finding(HOSTILE, 0.5, (HOSTILE,), HOSTILE),)
    result = replace(
        a_result("overflow"),
        backend=HOSTILE,
        prompt=HOSTILE,
        text=HOSTILE,
        first_bad=bad,
        layers=layers,
        findings=findings,
    )
    skipped = (SkippedBackend(HOSTILE, HOSTILE, HOSTILE),)
    report = replace(a_report(result, skipped=skipped), left_out=(HOSTILE,), reference=HOSTILE)
    judged = {(HOSTILE, HOSTILE): [replace(j, layer=HOSTILE) for j in judgements()]}
    text = shown(report, judged, width=width)
    assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
    assert not {"\u202e", "\u200b"} & set(text)
    assert "title" not in text
    if width == 120:
        assert "[bold]markup[/bold] :smile:" in text


def test_a_status_of_another_version_is_shown_all_the_same() -> None:
    report = a_report(a_result())
    report = replace(
        report,
        verdict=replace(report.verdict, status="haunted"),
        results=tuple(replace(r, status="haunted") for r in report.results),
    )
    assert "verdict: haunted" in shown(report)
