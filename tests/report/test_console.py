"""The report on a terminal: every status, every width, and text that means harm."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from gptq_diff.records import Finding, LayerCount, Report, SkippedBackend, SkippedLayer
from gptq_diff.report.console import show
from tests.report.build import BAD, HOSTILE, LAYERS, STATUSES, a_report, a_result, an_original, judgements

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
    """A finding that several results share is said once."""
    alike = a_result("nondeterministic"), a_result("nondeterministic", "sim-reconstruct")
    text = shown(a_report(*alike, a_result("overflow", "sim-gptq")))
    assert f"sim-exllama, short; sim-reconstruct, short: race-or-uninitialised at {LAYERS[2]}" in text
    assert "  - 3 linears gave other bits" in text
    assert "sim-gptq, short: 1 linears not compared: its input was already NaN or infinite" in text
    assert "2 of 2 captures keep less" in text


def test_a_skipped_backend_shows_the_end_of_its_log() -> None:
    """The last lines, as they are; the report file has more."""
    lines = (*(f"line {n}" for n in range(9)), "the [bold]end[/bold]")
    text = shown(a_report(skipped=(SkippedBackend("vllm", "died", "logs/vllm.log", lines),)))
    found = text.splitlines()
    at = found.index("skipped vllm: died (log: logs/vllm.log)")
    assert [line.strip() for line in found[at + 1 : at + 5]] == ["line 6", "line 7", "line 8", "the [bold]end[/bold]"]
    assert "line 5" not in text


def test_what_backends_took_is_shown() -> None:
    """Loading once, generating summed over the prompts, peaks; a dash for what is not known."""
    long = replace(a_result("agree", prompt="long"), seconds={"load": 1.5, "generate": 3, "judge": 0.25})
    first = replace(a_result("agree"), seconds={"load": 1.5, "generate": 2, "judge": 0.25}, peak_private_bytes=7**10)
    text = shown(a_report(first, long, an_original()))
    (ours,) = (line.split() for line in text.splitlines() if line.startswith("sim-exllama") and "short" not in line
               and "long" not in line)  # fmt: skip
    assert ours == ["sim-exllama", "1.5", "5.0", "0.2", "282", "MB", "-"]
    (original,) = (line.split() for line in text.splitlines() if line.endswith("2.1 GB"))
    assert original == ["hf-original", "1.5", "2.0", "-", "-", "2.1", "GB"]
    bare = replace(a_result(), seconds={}, peak_private_bytes=None)
    assert "generate (s)" not in shown(a_report(bare))


def test_the_unquantised_model_is_told_apart_from_what_was_judged() -> None:
    """A dash where others have counts, one line about quantisation, and every layer when asked."""
    report = a_report(a_result("overflow"), an_original())
    text = shown(report, width=250)
    (row,) = (line for line in text.splitlines() if line.startswith("hf-original") and "(37)" in line)
    assert row.split()[3:7] == ["agree", "-", "-", "-"]
    assert (
        "hf-original, short: quantisation itself changes a linear's output by 6.5e-02 (the middle one), at most "
        f"1.2e-01 ({LAYERS[-1]}); the first token's distribution by 2.5e-01 nats; token 1 is the first that differs"
    ) in text
    assert "On the same prompt hf-original" not in text
    assert "not quantised" not in text
    assert "relative l2, prefill" not in text
    assert LAYERS[7] not in text
    everything = shown(report, width=200, every=True)
    (line,) = (line.split() for line in everything.splitlines() if line.startswith(LAYERS[7]))
    assert line == [LAYERS[7], "8.0e-02", "2.0e-02"]


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


def test_rows_of_a_prefix_cache_are_told_beside_the_tokens() -> None:
    """Of that backend alone: the kernels saw the others."""
    text = shown(a_report(a_result("agree", "hf-fp32"), replace(a_result("agree"), cached_rows=32)))
    assert text.count("short (37)") == 1
    assert text.count("short (37, 32 cached)") == 1
