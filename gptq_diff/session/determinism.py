"""What the repeats of a prompt say, told while their tensors are there and stored for when they are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import read_json, write_json
from gptq_diff.compare.repeats import settle_repeats
from gptq_diff.errors import CaptureError
from gptq_diff.jobs import capture_key
from gptq_diff.records import Finding, Judgement, Result

UNSTABLE = "race-or-uninitialised"
"""The cause by which settle_repeats says that rounding does not explain the difference."""


def settle(result: Result, run: RunDir, finished: Sequence[str], judgements: Sequence[Judgement]) -> Result:
    """The result with what its repeats say; unchanged where fewer than two runs of the prompt are whole.

    finished: keys of this backend's whole captures.
    """
    repeats = finished_repeats(result.prompt, finished)
    if repeats < 2:
        return result
    stored = run.judged(result.backend, result.prompt).with_suffix(".repeats.json")
    if stored.exists() and not _all_kept(run, result, repeats, judgements):
        return sharpened(_with(result, _read(stored)))
    settled = settle_repeats(result, run, repeats, judgements)
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_json(stored, [asdict(f) for f in settled.findings[len(result.findings) :]])
    return sharpened(settled)


def sharpened(result: Result) -> Result:
    """A linear that nothing else explains, and that gave two answers to one input, races: that is told first.

    What was ruled out stays as evidence. Without both the result is unchanged.
    """
    racing = {f.layer for f in result.findings if f.cause == UNSTABLE}
    unknown = {f.layer: f for f in reversed(result.findings) if f.cause == "unknown" and f.layer in racing}
    if not unknown:
        return result
    races = [
        replace(f, confidence=max(f.confidence, 0.7), evidence=(*f.evidence, *unknown[f.layer].evidence))
        for f in result.findings
        if f.cause == UNSTABLE and f.layer in unknown
    ]
    others = [f for f in result.findings if f.cause not in {UNSTABLE, "unknown"} or f.layer not in unknown]
    ahead = [f for f in others if result.first_bad is not None and f.layer == result.first_bad.layer]
    return replace(result, findings=(*ahead, *races, *(f for f in others if f not in ahead)))


def finished_repeats(prompt: str, finished: Sequence[str]) -> int:
    """How many runs of that prompt are whole, without a gap."""
    repeats = 0
    while capture_key(prompt, repeats + 1) in finished:
        repeats += 1
    return repeats


def _all_kept(run: RunDir, result: Result, repeats: int, judgements: Sequence[Judgement]) -> bool:
    readers = [run.reader(result.backend, result.prompt, n) for n in range(1, repeats + 1)]
    return all(r.has(j.step, j.stored, "out") for r in readers for j in judgements)


def _read(path: Path) -> tuple[Finding, ...]:
    try:
        return tuple(Finding.from_json(f) for f in read_json(path))
    except (TypeError, KeyError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "run the capture again") from e


def _with(result: Result, findings: tuple[Finding, ...]) -> Result:
    unstable = any(f.cause == UNSTABLE for f in findings)
    status = "nondeterministic" if unstable and result.status in {"agree", "collapsed"} else result.status
    return replace(result, findings=(*result.findings, *findings), status=status)
