"""What a reader should know first and do next: the verdict in one short sentence, and the steps that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.records import INTERVALS, Report, Result

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
            return (Step("Nothing is wrong with what was compared. Some backends did not run: the reasons are below."),)
        return (Step("Nothing is wrong with these prompts. Headroom below says how near they came to overflow."),)
    if worst is None or report.verdict.status == "incomplete":
        names = ", ".join(s.backend for s in report.skipped_backends)
        what = f"Mend what stopped {names} (the reasons are below), and run again." if names else "Run it again."
        return (Step(what), Step("What is whole can be judged without another run:", "gptq-diff compare RUN"))
    steps = [Step(f"Worked here: {w.name}. {_sentence(w.detail)}") for w in worst.workarounds if w.works]
    explained = any(f.cause not in _UNEXPLAINED for f in worst.findings)
    if not steps:
        steps.append(Step("No workaround is known to help here yet."))
    if not explained:
        steps.append(Step("Ask the live kernel why, where it runs:", "gptq-diff diagnose RUN --experiments"))
    steps.append(Step("Make what a bug report needs:", "gptq-diff bundle RUN"))
    return tuple(steps)


def _sentence(text: str) -> str:
    """With a capital at its start and a stop at its end."""
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
