"""What to do: never empty, first what worked here, and only commands that exist."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from gptq_diff.cli.app import app
from gptq_diff.records import Finding, Report, Result, SkippedBackend, Sweep, SweepRange, Workaround
from gptq_diff.report.advice import advice, headline
from tests.report.build import LAYERS, STATUSES, a_report, a_result

CAUSE = Finding("accumulator-overflow", 0.9, ("a sum passes 65,504",), LAYERS[5])
WORKED = Workaround.run(
    "backend hf-fp16", "run here by fp16: all linears agree, the reference's tokens", works=True
)  # fmt: skip
PADDED = Workaround.run("padded prompt", "14 line breaks; every linear agrees", works=True)
NO_HELP = Workaround.run("backend sim-gptq", "run here by exllama-fast: overflow", works=False)


def failing(*workarounds: Workaround, backend: str = "vllm-gptq", findings: tuple[Finding, ...] = (CAUSE,)) -> Report:
    worst = replace(a_result("overflow", backend), workarounds=workarounds, findings=findings)
    return a_report(a_result("agree", "hf-fp32"), worst)


def said(report: Report) -> list[str]:
    return [step.text for step in advice(report)]


def commands(report: Report) -> list[str]:
    return [step.command for step in advice(report) if step.command]


@pytest.mark.parametrize(
    "skipped", [(), (SkippedBackend("vllm", "needs an NVIDIA GPU", ""),)], ids=["whole", "skipped"]
)
@pytest.mark.parametrize("status", [*STATUSES, "nothing"])
def test_never_empty_and_every_command_exists(status: str, skipped: tuple[SkippedBackend, ...]) -> None:
    """Whatever became of a run, a reader is told something to do, and what is to be typed can be typed."""
    results = () if status == "nothing" else (a_result("agree", "hf-fp32"), a_result(status))
    report = a_report(*results, skipped=skipped)
    assert advice(report)
    assert headline(report).endswith(".")
    for command in commands(report):
        program, *words = shlex.split(command)
        assert program == "gptq-diff"
        shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        assert all(word in shown.output for word in words if word.startswith("--"))


def test_an_agreement_without_a_backend_that_was_asked_for_is_no_clean_bill() -> None:
    """Its exit code is 3: the headline names who is missing, and the first thing to do is to mend it."""
    names = ("vllm-gptq", "auto-gptq", "gptqmodel", "gptq-marlin", "gptq-machete")
    skipped = tuple(SkippedBackend(name, "needs an NVIDIA GPU", "") for name in names)
    report = a_report(a_result("agree", "hf-fp32"), a_result("agree"), skipped=skipped)
    missing = "vllm-gptq, auto-gptq, gptqmodel, gptq-marlin and 1 more"
    assert headline(report) == f"Every backend that ran agrees with the exact answer; {missing} did not run to the end."
    assert said(report)[0].startswith(f"Nothing is known of {missing}: ")


def test_a_healthy_run_says_what_else_could_be_asked() -> None:
    """Whoever sees the defect elsewhere is not left with `nothing is wrong`."""
    assert commands(a_report(a_result("agree", "hf-fp32"), a_result("agree"))) == [
        "gptq-diff run --model DIR --prompt-file prompts.jsonl --sweep-tokens 1:64"
    ]


def test_what_worked_comes_first_and_says_whose_place_it_takes() -> None:
    report = failing(WORKED, PADDED, NO_HELP)
    assert said(report)[:2] == [
        "Worked here: hf-fp16 in its place: all linears agree, the reference's tokens.",
        "Worked here: padded prompt: 14 line breaks; every linear agrees.",
    ]
    assert not any("sim-gptq" in line or "No workaround" in line for line in said(report))


def test_where_nothing_was_tried_it_says_how_to() -> None:
    """And not where all was tried in vain: then that is said."""
    assert "gptq-diff run --model DIR --prompt-file prompts.jsonl --backends vllm-gptq --workarounds all" in commands(
        failing()
    )
    tried = failing(NO_HELP)
    assert "Nothing else that was tried helps." in said(tried)
    assert not any("--workarounds" in command for command in commands(tried))


def test_what_a_sweep_found_is_a_way_out() -> None:
    """Lengths at which the same backend is right, of that prompt and no other."""

    def renamed(result: Result) -> Result:
        return replace(result, prompt="p1-t037")

    report = failing()
    report = replace(
        report, results=tuple(map(renamed, report.results)), verdict=replace(report.verdict, prompt="p1-t037"),
        sweeps=(
            Sweep("vllm-gptq", "p1", 1, 64, 1, (SweepRange(1, 50, "nan", None), SweepRange(51, 64, "agree", None))),
            Sweep("vllm-gptq", "p2", 1, 64, 1, (SweepRange(7, 7, "agree", None),)),
            Sweep("hf-fp32", "p1", 1, 64, 1, (SweepRange(1, 64, "agree", None),)),
        ),
    )  # fmt: skip
    assert "Right on this backend with 51 to 64 tokens of the same prompt." in said(report)
    assert sum("Right on this backend" in line for line in said(report)) == 1


def test_a_simulated_fault_is_to_be_seen_on_the_kernel() -> None:
    """A maintainer believes a kernel; what an engine ran itself needs no such step."""
    assert any("This was computed" in line for line in said(failing(backend="sim-exllama")))
    assert not any("This was computed" in line for line in said(failing()))


def test_an_unexplained_fault_is_asked_about() -> None:
    unknown = replace(CAUSE, cause="unknown")
    assert "gptq-diff diagnose RUN --experiments" in commands(failing(findings=(unknown,)))
    assert "gptq-diff diagnose RUN --experiments" not in commands(failing())
