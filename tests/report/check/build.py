"""Checks made up from nothing, with a case of every state."""

from __future__ import annotations

from gptq_diff.records import (
    ALL_LINEARS,
    ERROR,
    FAILED,
    HELD,
    SKIPPED,
    CaseOutcome,
    Checked,
    CheckReport,
    Expectation,
    Regression,
    Seen,
    SelfTest,
)

DOWN = "model.layers.1.mlp.down_proj"
EXPECTED = Expectation("sim-gptq", "short", "overflow", DOWN, "accumulator-overflow", True, 30)


def a_check(text: str = "") -> Checked:
    """One that held."""
    seen = Seen("sim-gptq", "short", "overflow", DOWN, "accumulator-overflow", True, 17, f"overflow{text}")
    return Checked("sim-gptq", "short", EXPECTED, seen, ())


def a_miss(text: str = "") -> Checked:
    """One that did not hold, and that no expectation names."""
    seen = Seen("hf-fp16", "short", "diverged", DOWN, None, False, 28, f"diverged{text}")
    told = (f"status: expected agree, happened diverged{text}",)
    return Checked("hf-fp16", "short", Expectation(status="agree"), seen, told, stated=False)


def cases(text: str = "") -> tuple[CaseOutcome, ...]:
    """Held, failed, regressed, skipped, not judged."""
    grown = Regression("hf-fp16", "short", DOWN, 4e-4, 9e-4, 6e-4)
    mean = Regression("hf-fp16", "short", ALL_LINEARS, 1.0, 1.4, 1.25)
    return (
        CaseOutcome("good", HELD, checks=(a_check(text),), seconds=2.5, run="out/good/run"),
        CaseOutcome("bad", FAILED, checks=(a_check(text), a_miss(text)), seconds=3.0, planted=f"a fault{text}",
                    versions={"hf-fp16": {"torch": "2.13.0"}}),
        CaseOutcome("grown", FAILED, checks=(a_check(text),), regressions=(mean, grown), seconds=1.0),
        CaseOutcome("gpu", SKIPPED, f"vllm-gptq needs an NVIDIA GPU{text}"),
        CaseOutcome("gone", ERROR, f"it took its process with it (killed by signal 9){text}", seconds=0.5),
    )  # fmt: skip


def a_self_test(*, sees: bool = True, text: str = "") -> SelfTest:
    """The planted fault, found or not."""
    outcome = CaseOutcome("fault-bias", HELD if sees else FAILED, planted=f"bias in the kernel{text}", seconds=4.0)
    return SelfTest("fault-bias", outcome, sees, "" if sees else f"status: expected diverged, happened agree{text}")


def a_report(*found: CaseOutcome, sees: bool = True, text: str = "", not_begun: tuple[str, ...] = ()) -> CheckReport:
    """A check of these cases, or of one of every state."""
    return CheckReport(
        schema_version=1, gptq_diff="0.1.0", created="2026-11-26T01:02:03+00:00",
        environment={"python": "3.11.7", "gpu": None}, cases=found or cases(text),
        self_test=a_self_test(sees=sees, text=text), seed=7, seconds=11.0, not_begun=not_begun,
    )  # fmt: skip
