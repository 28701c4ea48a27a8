"""One bad call as hypotheses see it: its finite rows, the exact answer, and what rounding explains of every column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.numerics import floors

if TYPE_CHECKING:
    from gptq_diff.diagnose.parts import Source


@dataclass(frozen=True)
class Case:
    """The rows of a call whose input is finite.

    source: where weights come from. path: the arithmetic that ran. x_MK: float32. w_KN: float32, the exact weight, 0 in
    columns that are not finite. y_MN: float32, 0 where it does not count. known_MN: bool, where y counts.
    rows_M: int64, the rows' numbers in the call. among_N: bool, the columns in question where these are chosen already.
    """

    source: Source
    path: str
    x_MK: torch.Tensor
    w_KN: torch.Tensor
    y_MN: torch.Tensor
    known_MN: torch.Tensor
    rows_M: torch.Tensor
    among_N: torch.Tensor | None = None

    @cached_property
    def exact_MN(self) -> torch.Tensor:  # noqa: N802  shapes are part of the names here
        """The exact answer x W, float32."""
        return self.x_MK @ self.w_KN

    @cached_property
    def weight_M(self) -> torch.Tensor:  # noqa: N802
        """What a row's squares count, float64: the inverse of its energy, lest one massive row drown the others."""
        energy_M = self.x_MK.double().square() @ self.w_KN.square().sum(dim=1).double()
        return torch.where(energy_M > 0, 1.0 / energy_M.clamp_min(1e-300), 0.0)

    @cached_property
    def error2_N(self) -> torch.Tensor:  # noqa: N802
        """Squared error of every column, float64."""
        return self.error2(self.exact_MN, torch.arange(self.exact_MN.shape[1]))

    @cached_property
    def floor2_N(self) -> torch.Tensor:  # noqa: N802
        """What rounding explains of it, float64."""
        return self.floor2(self.exact_MN, self.w_KN, self.x_MK)

    @property
    def bad(self) -> torch.Tensor:
        """Columns whose error rounding does not explain, bool [N]."""
        return self.error2_N > FACTOR**2 * self.floor2_N

    @property
    def suspects(self) -> torch.Tensor:
        """The columns in question: the bad ones, or all of them where none stands out, bool [N]."""
        return bad_or_all(self.bad) if self.among_N is None else self.among_N

    def of_columns(self, columns: torch.Tensor) -> Case:
        """The same with these columns (int64) in question."""
        among_N = torch.zeros(self.y_MN.shape[1], dtype=torch.bool)
        among_N[columns] = True
        return replace(self, among_N=among_N)

    def left(self, columns_N: torch.Tensor, more2_N: torch.Tensor | float = 0.0) -> float:
        """How many times the expected rounding (and more2_N besides) these columns err, root mean square."""
        return float((self.error2_N / (self.floor2_N + more2_N))[columns_N].mean().sqrt())

    def some_rows(self, most: int) -> Case:
        """The same with at most so many rows: those that err most, for their energy."""
        if len(self.rows_M) <= most:
            return self
        error2_M = torch.where(self.known_MN, self.y_MN - self.exact_MN, 0.0).double().square().sum(dim=1)
        rows = torch.argsort(error2_M * self.weight_M, descending=True)[:most].sort().values
        return replace(
            self, x_MK=self.x_MK[rows], y_MN=self.y_MN[rows], known_MN=self.known_MN[rows], rows_M=self.rows_M[rows]
        )

    def error2(self, prediction_MC: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """float64 [C]: squared error of these columns if the prediction were the right answer."""
        gap = torch.where(self.known_MN[:, columns], self.y_MN[:, columns] - prediction_MC, 0.0)
        return self.weight_M @ gap.nan_to_num_(0.0, 1e18, -1e18).double().square_()

    def floor2(self, prediction_MC: torch.Tensor, w_KC: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
        """float64 [C]: the squared rounding error to expect of these columns."""
        x2_K = self.weight_M @ x_MK.double().square()
        exact2_C = self.weight_M @ prediction_MC.nan_to_num(0.0, 0.0, 0.0).double().square()
        energy_C = x2_K @ w_KC.nan_to_num(0.0, 0.0, 0.0).double().square()
        spec = self.source.spec
        known = floors.Rows(energy_C, exact2_C, spec.in_features, self.weight_M.sum(), spec.bits)
        return floors.expected_error2(self.path, known).clamp_min(1e-300)


def bad_or_all(bad_N: torch.Tensor) -> torch.Tensor:
    """The same, or everything where nothing is marked."""
    return bad_N if bool(bad_N.any()) else torch.ones_like(bad_N)


def case_of(source: Source, path: str, x_MK: torch.Tensor, y_MN: torch.Tensor, w_KN: torch.Tensor) -> Case | None:
    """The case of one captured call; None where no row of x is finite. w_KN: float32, the exact weight."""
    finite_M = torch.isfinite(x_MK).all(dim=1)
    if not bool(finite_M.any()):
        return None
    x_MK, y_MN = x_MK[finite_M].float(), y_MN[finite_M].float()
    clean_KN = torch.where(torch.isfinite(w_KN).all(dim=0), w_KN, 0.0)
    known_MN = torch.isfinite(y_MN) & torch.isfinite(w_KN).all(dim=0)
    y_MN = torch.where(known_MN, y_MN, 0.0)
    return Case(source, path, x_MK, clean_KN, y_MN, known_MN, torch.nonzero(finite_M).flatten())
