"""What a layer's other calls say of a fault that no hypothesis explains: always there, at some M, or now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import Case
from gptq_diff.records import Finding


@dataclass(frozen=True)
class OtherCall:
    """One more call of the same layer: its rows M, and how many times the expected rounding the bad columns err."""

    rows: int
    left: float

    @property
    def bad(self) -> bool:
        """Whether the fault is there too."""
        return self.left > FACTOR

    @property
    def good(self) -> bool:
        """Whether it clearly is not."""
        return self.left < FACTOR / 2


def other_call(case: Case, bad_N: torch.Tensor) -> OtherCall:
    """How another call does in the columns that err in the first one (all of them where none stands out)."""
    columns = bad_N if bool(bad_N.any()) else torch.ones_like(bad_N)
    left = float((case.error2_N / case.floor2_N)[columns].mean().sqrt())
    return OtherCall(len(case.rows_M), left)


def between_calls(finding: Finding, rows: int, others: Sequence[OtherCall]) -> Finding:
    """The finding `unknown` of a call with that many rows, or a better one where other calls betray it."""
    good = [o.rows for o in others if o.good]
    bad = [rows, *(o.rows for o in others if o.bad)]
    if finding.cause != "unknown" or not good:
        return finding
    told = f"{len(bad)} calls of this layer err so (M = {_rows(bad)}), {len(good)} do not (M = {_rows(good)})"
    if set(good) & set(bad):
        evidence = (
            told,
            "the same weights and the same number of rows give right and wrong results",
            *finding.evidence,
        )
        return Finding("race-or-uninitialised", 0.7, evidence, finding.layer, "some calls go wrong and some do not")
    if max(bad) < min(good) or max(good) < min(bad):
        side = f"up to {max(bad)}" if max(bad) < min(good) else f"from {min(bad)} on"
        evidence = (told, *finding.evidence)
        return Finding("row-path", 0.7, evidence, finding.layer, f"it errs with rows {side} only")
    return finding


def _rows(values: Sequence[int]) -> str:
    shown = sorted(set(values))
    return ", ".join(map(str, shown[:6])) + (", ..." if len(shown) > 6 else "")
