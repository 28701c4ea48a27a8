"""The commands that make a run again, as far as a report knows them."""

from __future__ import annotations

import shlex

from gptq_diff.records import Report

PROMPTS = "prompts.jsonl"
NEW_TOKENS = 8
"""What --max-new-tokens is where nobody says."""
_BUILD, _HF = "gptq-diff model build ", "hf download"


def commands(report: Report, *, prompts: str = PROMPTS, named: str = "model") -> tuple[str, ...]:
    """What to type, line by line: the checkpoint first where it can be named, then the run.

    named: the folder that a checkpoint with a public name is put into.
    """
    get, model = _checkpoint(report.model.path, named)
    words = ["gptq-diff", "run", "--model", model, "--prompt-file", prompts, "--backends", _backends(report)]
    if report.reference != "hf-fp32":
        words += ["--reference", report.reference]
    if report.reference_model is not None:
        words += ["--reference-model", _checkpoint(report.reference_model.path, "reference-model")[1]]
    if report.original_model is not None:
        words += ["--original", _checkpoint(report.original_model.path, "original-model")[1]]
    lengths = sorted({(s.first, s.last, s.step) for s in report.sweeps})
    if lengths:
        first, last, step = lengths[0]
        words += ["--sweep-tokens", f"{first}:{last}" + (f":{step}" if step > 1 else "")]
    elif (steps := max((r.steps for r in report.results), default=0)) not in (0, NEW_TOKENS):
        words += ["--max-new-tokens", str(steps)]
    return (*get, shlex.join(words))


def prompt_line(report: Report) -> str:
    """Which prompts there were: `short (37 tokens), long (64 tokens)`."""
    shown = [f"{p.id} ({p.tokens} token{'' if p.tokens == 1 else 's'})" for p in report.prompts[:8]]
    more = f" and {len(report.prompts) - 8} more" if len(report.prompts) > 8 else ""
    return ", ".join(shown) + more


def _checkpoint(path: str, named: str) -> tuple[tuple[str, ...], str]:
    """How to get it, and what to call it: a build's command, a repository of the Hub, a path, or nothing to go by."""
    if path.startswith(_BUILD):
        return (f"{path} --out {named}",), named
    if path.startswith("/"):
        return (), path
    if path.count("/") == 1 and " " not in path:
        return (f"{_HF} {shlex.quote(path)} --local-dir {named}",), named
    return (f"# {named}: {path}, known to its owner by the fingerprint",), named


def _backends(report: Report) -> str:
    return ",".join(dict.fromkeys(r.backend for r in report.results)) or report.reference
