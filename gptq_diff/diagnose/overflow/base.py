"""Infinite or NaN outputs where the exact answer is finite: which arithmetic has them at just these places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import LARGEST_HALF
from gptq_diff.records import PartialSums

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

MOST_ROWS = 24
"""Rows that are computed once more: those with lost outputs first."""


@dataclass(frozen=True)
class Lost:
    """A call with lost outputs, of its rows with a finite input.

    x_MK: as captured, finite. lost_MN: bool, y is not finite and the exact answer fits in float16.
    exact_MN: float32. rows_M: int64, the rows' numbers in the call. path: the arithmetic that is said to have run.
    nan_MN: bool, y is NaN. loaded_MN: float32, the exact answer with the weights that the backend loaded, where they
    come from another checkpoint.
    """

    linear: PackedLinear
    path: str
    x_MK: torch.Tensor
    lost_MN: torch.Tensor
    exact_MN: torch.Tensor
    rows_M: torch.Tensor
    nan_MN: torch.Tensor
    loaded_MN: torch.Tensor | None = None

    @property
    def exact_absmax(self) -> float:
        """The largest exact answer of the whole call."""
        return float(self.exact_MN.abs().max())

    def fewer_rows(self) -> Lost:
        """At most MOST_ROWS of them."""
        lost_M = self.lost_MN.sum(dim=1)
        rows = torch.argsort(lost_M, descending=True, stable=True)[:MOST_ROWS].sort().values
        return replace(
            self, x_MK=self.x_MK[rows], lost_MN=self.lost_MN[rows], exact_MN=self.exact_MN[rows],
            rows_M=self.rows_M[rows], nan_MN=self.nan_MN[rows],
            loaded_MN=None if self.loaded_MN is None else self.loaded_MN[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class Reproduced:
    """How well one arithmetic explains the lost outputs.

    says: the arithmetic, in words. both: outputs lost in y and in the computation; only_y, only_here: in one of them.
    evidence: sentences with the partial sum that passes 65504; short: the same in a few words. paths: those whose
    arithmetic this is. sums: the first lost output's, while it grows.
    """

    says: str
    both: int
    only_y: int
    only_here: int
    evidence: tuple[str, ...]
    paths: frozenset[str]
    short: str = ""
    sums: PartialSums | None = None

    @property
    def match(self) -> float:
        """Of all outputs that are lost on either side, the share lost on both; 1 is all of them."""
        return self.both / max(self.both + self.only_y + self.only_here, 1)


def compare(
    lost: Lost, here_MN: torch.Tensor, says: str, evidence: tuple[str, ...], paths: frozenset[str], short: str = "",
    sums: PartialSums | None = None,
) -> Reproduced:  # fmt: skip
    """here_MN: bool, what the arithmetic loses; places where the exact answer does not fit do not count."""
    here_MN = here_MN & (lost.exact_MN.abs() < LARGEST_HALF)
    both = int((here_MN & lost.lost_MN).sum())
    return Reproduced(
        says, both, int(lost.lost_MN.sum()) - both, int(here_MN.sum()) - both, evidence, paths, short, sums
    )


def first_lost(lost: Lost) -> tuple[int, int]:
    """[row, column] of the first lost output among these rows."""
    where = torch.nonzero(lost.lost_MN)
    return int(where[0, 0]), int(where[0, 1])
