"""From a captured call and its judgement to the subject of experiments: which rows are bad, which are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.compare.judge import CapturedCall, Weight, judge_layer
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.experiments.base import Subject
from gptq_diff.records import Judgement

MOST_ROWS = 512
"""Rows that a call is made with: more than any kernel's boundary between paths."""
MOST_BAD = 64
"""Bad rows that are looked at."""


@dataclass(frozen=True)
class Where:
    """Whose call it is."""

    backend: str
    kernel: str
    prompt: str


def subject_of(where: Where, weight: Weight, call: CapturedCall, judgement: Judgement) -> Subject | None:
    """The subject; None where no row of x is finite, so that there is nothing to judge."""
    finite_M = torch.isfinite(call.x_MK).all(dim=1)
    if not bool(finite_M.any()):
        return None
    bad = worst_first(weight, call, torch.nonzero(finite_M).flatten().tolist()) if judgement.kind in BAD_KINDS else []
    chosen = list(range(call.x_MK.shape[0]))
    if len(chosen) > MOST_ROWS:
        chosen = sorted({*bad, *[row for row in chosen if row not in bad][: MOST_ROWS - len(bad)]})
    place = {row: i for i, row in enumerate(chosen)}
    linear = weight.linear
    return Subject(
        backend=where.backend, kernel=where.kernel, prompt=where.prompt, layer=judgement.layer, step=call.step,
        path=call.path, kind=judgement.kind, cause=judgement.cause, exact_absmax=judgement.exact_absmax,
        x_MK=call.x_MK[chosen].contiguous(), y_MN=call.y_MN[chosen].contiguous(),
        bad_rows=tuple(place[row] for row in bad),
        finite_rows=tuple(place[row] for row in chosen if bool(finite_M[row])),
        bias_N=None if linear is None else linear.bias,
    )  # fmt: skip


def worst_first(weight: Weight, call: CapturedCall, rows: list[int]) -> list[int]:
    """Rows that are bad by themselves, those with the most lost outputs first, then the largest errors; 64 at most."""
    single = [
        CapturedCall(call.step, i, call.path, call.x_MK[row : row + 1], call.y_MN[row : row + 1], None)
        for i, row in enumerate(rows)
    ]
    judged = [(j.nonfinite, j.excess or 0.0, row) for row, j in zip(rows, judge_layer(weight, single)) if _bad(j)]
    judged.sort(key=lambda found: (-found[0], -found[1], found[2]))
    return [row for _, _, row in judged[:MOST_BAD]]


def _bad(judgement: Judgement) -> bool:
    return judgement.kind in BAD_KINDS
