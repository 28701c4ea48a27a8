"""What a layer's other calls say of a fault that does not belong to its weights: at some M, or now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import Case
from gptq_diff.records import Finding

MOVING = frozenset({"unknown", "race-or-uninitialised"})
"""Findings that other calls can sharpen."""
PLAINLY = 0.125
"""Share of the error to expect below which a call is another case; a single row errs by more than rounding expects."""


@dataclass(frozen=True)
class OtherCall:
    """One more call of the same layer by the same path.

    rows: M. bad: it was judged to err. left: how many times the expected rounding the first call's bad columns err.
    to_expect: the same, for the middle one of them, if they erred here by the share of the answer that they err by in
    the first call.
    """

    rows: int
    bad: bool
    left: float
    to_expect: float

    @property
    def clean(self) -> bool:
        """Whether the columns that err in the first call are right here, and it would show if they were not."""
        return self.left < FACTOR / 2 and self.to_expect > FACTOR

    @property
    def spared(self) -> bool:
        """Whether this call is right, and it would show plainly if it were not."""
        return not self.bad and (self.clean or (self.to_expect > FACTOR and self.left < PLAINLY * self.to_expect))


def other_call(case: Case, first: Case, *, bad: bool) -> OtherCall:
    """How another call does in the columns that err in the first one (all of them where none stands out)."""
    columns = first.suspects
    share2_C = first.error2_N[columns] / _answer2(first)[columns].clamp_min(1e-300)
    expected2_C = share2_C * _answer2(case)[columns] / case.floor2_N[columns]
    return OtherCall(len(case.rows_M), bad, case.left(columns), float(expected2_C.median().sqrt()))


def _answer2(case: Case) -> torch.Tensor:
    """Squared exact answer of every column, rows weighted, float64."""
    return case.weight_M @ torch.where(case.known_MN, case.exact_MN, 0.0).double().square()


def between_calls(finding: Finding, rows: int, others: Sequence[OtherCall]) -> Finding:
    """The finding of a call with that many rows, or a better one where other calls betray it."""
    if finding.cause not in MOVING:
        return finding
    good = [o.rows for o in others if o.spared]
    bad = [rows, *(o.rows for o in others if o.bad)]
    told = f"{len(bad)} calls of this layer err (M = {_rows(bad)}), {len(good)} do not (M = {_rows(good)})"
    evidence = (told, *finding.evidence)
    if any(o.bad and o.clean for o in others):
        evidence = ("other calls of this layer err in other columns, where the weights are the same", *finding.evidence)
        return _race(finding, evidence, "calls go wrong in different places")
    if set(good) & set(bad):
        return _race(finding, evidence, "some calls go wrong and some with as many rows do not")
    if good and (max(bad) < min(good) or max(good) < min(bad)):
        side = f"up to {max(bad)}" if max(bad) < min(good) else f"from {min(bad)} on"
        return Finding("row-path", 0.7, evidence, finding.layer, f"it errs with rows {side} only")
    return finding


def _race(finding: Finding, evidence: tuple[str, ...], summary: str) -> Finding:
    confidence = max(finding.confidence, 0.7)
    return replace(
        finding, cause="race-or-uninitialised", confidence=confidence, evidence=evidence,
        summary=finding.summary or summary,
    )  # fmt: skip


def _rows(values: Sequence[int]) -> str:
    shown = sorted(set(values))
    return ", ".join(map(str, shown[:6])) + (", ..." if len(shown) > 6 else "")
