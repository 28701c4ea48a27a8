"""Determinism: the same prompt again must give the same bits, or differ by no more than its rounding explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader
from gptq_diff.capture.tap import BIAS
from gptq_diff.compare.judge import FACTOR
from gptq_diff.records import ORIGINAL, Finding, Judgement, Result


def settle_repeats(result: Result, run: RunDir, repeats: int, judgements: Sequence[Judgement]) -> Result:
    """The result with what the repeats say of it; unchanged where there was one run only.

    A layer whose input had the same bits and whose output differs by more than FACTOR times sqrt(2) of its noise
    floor (two independent roundings) makes the backend `nondeterministic`.
    """
    if repeats < 2:
        return result
    first = run.reader(result.backend, result.prompt)
    differing, worst, unstable = set(), 0.0, None
    for repeat in range(2, repeats + 1):
        again = run.reader(result.backend, result.prompt, repeat)
        for j in (j for j in judgements if j.kind != ORIGINAL and j.path != BIAS):
            gap = _gap(first, again, j)
            if gap is None:
                continue
            differing.add(j.layer)
            share = gap / (FACTOR * 2**0.5 * max(j.noise_floor or 0.0, 1e-12))
            worst = max(worst, share)
            if share > 1.0 and unstable is None:
                unstable = j.layer
        again.close()
    first.close()
    if not differing:
        return result
    evidence = (
        f"{len(differing)} linears gave other bits for the same input in {repeats} runs",
        f"the largest difference is {worst:.2g} of what two independent roundings explain",
    )
    cause = "race-or-uninitialised" if unstable else "split-k-noise"
    finding = Finding(cause, 0.5, evidence, unstable)
    status = "nondeterministic" if unstable and result.status in {"agree", "collapsed"} else result.status
    return replace(result, findings=(*result.findings, finding), status=status)


def _gap(first: CaptureReader, again: CaptureReader, j: Judgement) -> float | None:
    """l2_rel between the outputs where the inputs have the same bits; None where outputs do too, or inputs do not."""
    if not (first.has(j.step, j.stored, "out") and again.has(j.step, j.stored, "out")):
        return None
    x, x2 = (r.tensor(j.step, j.stored, "in") for r in (first, again))
    if x.shape != x2.shape or not torch.equal(x.view(torch.uint8), x2.view(torch.uint8)):
        return None
    y, y2 = (r.tensor(j.step, j.stored, "out") for r in (first, again))
    if torch.equal(y.view(torch.uint8), y2.view(torch.uint8)):
        return None
    finite = torch.isfinite(y) & torch.isfinite(y2)
    if bool((torch.isfinite(y) != torch.isfinite(y2)).any()):
        return float("inf")
    a, b = y[finite].double(), y2[finite].double()
    return float((a - b).norm()) / max(float(a.norm()), 1e-30)
