"""What a reader should know first and do next: the verdict in one short sentence, and the steps that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.records import INTERVALS, Report, Result, SweepRange, Workaround, swept_prompt
from gptq_diff.report.paths import SIMULATES
from gptq_diff.report.repeat import PROMPTS

_LENGTHS = f"gptq-diff run --model DIR --prompt-file {PROMPTS} --sweep-tokens 1:64"
_UNEXPLAINED = {"unknown", "outside-linears"}


@dataclass(frozen=True)
class Step:
    """One thing to do. command: what to type, "" where it is no command of ours; RUN stands for the run directory."""

    text: str
    command: str = ""


def worst_result(report: Report) -> Result | None:
    """The result that the verdict speaks of."""
    for result in report.results:
        if (result.backend, result.prompt) == (report.verdict.backend, report.verdict.prompt):
            return result
    return None


def headline(report: Report) -> str:
    """The verdict in one short sentence: who breaks, where, and how."""
    verdict, worst = report.verdict, worst_result(report)
    who = f"{verdict.backend} (prompt {verdict.prompt})"
    if verdict.status == "agree":
        names = missing(report)
        if names:
            return f"Every backend that ran agrees with the exact answer; {names} did not run to the end."
        return "Every backend agrees with the exact answer on every linear judged."
    if worst is None or verdict.status == "incomplete":
        return "There is no verdict: not everything could be compared."
    if worst.first_bad is not None and worst.first_bad.path in INTERVALS:
        return f"{who} breaks before {worst.first_bad.layer}, in what makes its input ({worst.first_bad.path})."
    at = f" at {verdict.layer}" if verdict.layer else ""
    said = {
        "overflow": f"{who} overflows{at}.",
        "nan": f"{who} gives NaN{at}.",
        "diverged": f"{who} computes a wrong result{at}.",
        "collapsed": f"{who} writes only one token, again and again.",
        "nondeterministic": f"{who} gives another result each time{at}.",
    }
    return said.get(verdict.status, f"{who}: {verdict.status}{at}.")


def advice(report: Report) -> tuple[Step, ...]:
    """What helped here, else what to try next; never empty."""
    worst = worst_result(report)
    if report.verdict.status == "agree":
        if report.skipped_backends:
            return (
                Step(
                    f"Nothing is known of {missing(report)}: mend what stopped it (the reasons are below), run again."
                ),
                Step("Nothing is wrong with what was compared."),
            )
        return (
            Step("Nothing is wrong with these prompts. Headroom below says how near they came to overflow."),
            Step("If it fails for you elsewhere, ask other lengths, and the backend that fails there:", _LENGTHS),
        )
    if worst is None or report.verdict.status == "incomplete":
        names = missing(report)
        what = f"Mend what stopped {names} (the reasons are below), and run again." if names else "Run it again."
        return (Step(what), Step("What is whole can be judged without another run:", "gptq-diff compare RUN"))
    return tuple(_about_a_fault(report, worst))


def missing(report: Report) -> str:
    """Who did not finish: `a, b, c, d and 2 more`; "" for nobody."""
    names = list(dict.fromkeys(s.backend for s in report.skipped_backends))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _about_a_fault(report: Report, worst: Result) -> list[Step]:
    steps = [_helps(w) for w in worst.workarounds if w.works]
    steps += _lengths(report, worst)
    if not any(w.works for w in worst.workarounds):
        tried = bool(worst.workarounds)
        steps.append(
            Step("Nothing else that was tried helps." if tried else "No workaround is known to help here yet.")
        )
        if not tried:
            steps.append(Step("Try what helps elsewhere, in a run of its own:", _again(worst, "--workarounds all")))
    if not any(f.cause not in _UNEXPLAINED for f in worst.findings):
        steps.append(Step("Ask the live kernel why, where it runs:", "gptq-diff diagnose RUN --experiments"))
    if worst.backend in SIMULATES:
        steps.append(
            Step("This was computed. See it on vLLM's own kernel, where a GPU is:", _again(worst, "", "vllm-gptq"))
        )
    steps.append(Step("Make what a bug report needs, with the smallest script that shows it:", "gptq-diff bundle RUN"))
    return steps


def _again(worst: Result, options: str, backend: str = "") -> str:
    return f"gptq-diff run --model DIR --prompt-file {PROMPTS} --backends {backend or worst.backend} {options}".rstrip()


def _helps(w: Workaround) -> Step:
    """What worked, as a sentence: `Worked here: hf-fp16 in its place: all linears agree, the reference's tokens`."""
    if w.name.startswith("backend "):
        kernel, _, rest = w.detail.partition(": ")
        return Step(f"Worked here: {w.name.removeprefix('backend ')} in its place: {_stopped(rest or kernel)}")
    return Step(f"Worked here: {w.name}: {_stopped(w.detail)}")


def _lengths(report: Report, worst: Result) -> list[Step]:
    """At which lengths the same backend is right, where a sweep asked."""
    swept = [s for s in report.sweeps if s.backend == worst.backend and s.prompt == swept_prompt(worst.prompt)]
    good = [_span(r) for s in swept for r in s.ranges if r.status == "agree"][:4]
    return [Step(f"Right on this backend with {', '.join(good)} tokens of the same prompt.")] if good else []


def _span(r: SweepRange) -> str:
    return str(r.first) if r.first == r.last else f"{r.first} to {r.last}"


def _stopped(text: str) -> str:
    """With one stop at its end."""
    return text.rstrip(".") + "."
