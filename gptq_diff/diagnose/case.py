"""One bad call as hypotheses see it: its finite rows, the exact answer, and what rounding explains of every column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.numerics import floors

if TYPE_CHECKING:
    from gptq_diff.diagnose.parts import Source


@dataclass(frozen=True)
class Case:
    """The rows of a call whose input is finite.

    source: where weights come from. path: the arithmetic that ran. x_MK, exact_MN: float32, exact is x W.
    y_MN: float32, 0 where it was not finite. known_MN: bool, where y counts.
    weight_M: float64, what a row's squares count: the inverse of its energy, lest one massive row drown the others.
    rows_M: int64, the rows' numbers in the call.
    error2_N, floor2_N: float64 [N], squared error of every column and what rounding explains of it.
    """

    source: Source
    path: str
    x_MK: torch.Tensor
    y_MN: torch.Tensor
    known_MN: torch.Tensor
    exact_MN: torch.Tensor
    weight_M: torch.Tensor
    rows_M: torch.Tensor
    error2_N: torch.Tensor
    floor2_N: torch.Tensor

    @property
    def bad(self) -> torch.Tensor:
        """Columns whose error rounding does not explain, bool [N]."""
        return self.error2_N > FACTOR**2 * self.floor2_N

    @property
    def left(self) -> float:
        """How many times the expected rounding the worst column errs."""
        return float((self.error2_N / self.floor2_N).max().sqrt())

    def some_rows(self, most: int) -> Case:
        """The same with at most so many rows: those that err most, for their energy."""
        if len(self.rows_M) <= most:
            return self
        error2_M = torch.where(self.known_MN, self.y_MN - self.exact_MN, 0.0).double().square().sum(dim=1)
        rows = torch.argsort(error2_M * self.weight_M, descending=True)[:most].sort().values
        return make_case(
            self.source, self.path, self.x_MK[rows], self.y_MN[rows], self.exact_MN[rows], self.known_MN[rows]
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


def case_of(source: Source, path: str, x_MK: torch.Tensor, y_MN: torch.Tensor, w_KN: torch.Tensor) -> Case | None:
    """The case of one captured call; None where no row of x is finite. w_KN: float32, the exact weight."""
    finite_M = torch.isfinite(x_MK).all(dim=1)
    if not bool(finite_M.any()):
        return None
    x_MK, y_MN = x_MK[finite_M].float(), y_MN[finite_M].float()
    clean_KN = torch.where(torch.isfinite(w_KN).all(dim=0), w_KN, 0.0)
    known_MN = torch.isfinite(y_MN) & torch.isfinite(w_KN).all(dim=0)
    exact_MN = x_MK @ clean_KN
    return make_case(source, path, x_MK, y_MN, exact_MN, known_MN, torch.nonzero(finite_M).flatten(), clean_KN)


def make_case(
    source: Source, path: str, x_MK: torch.Tensor, y_MN: torch.Tensor, exact_MN: torch.Tensor, known_MN: torch.Tensor,
    rows_M: torch.Tensor | None = None, w_KN: torch.Tensor | None = None,
) -> Case:  # fmt: skip
    """A case from rows that are finite."""
    if rows_M is None:
        rows_M = torch.arange(len(x_MK))
    if w_KN is None:
        w_KN = source.parts(x_MK, torch.arange(source.spec.out_features)).weight().nan_to_num_(0.0, 0.0, 0.0)
    energy_M = x_MK.double().square() @ w_KN.square().sum(dim=1).double()
    weight_M = torch.where(energy_M > 0, 1.0 / energy_M.clamp_min(1e-300), 0.0)
    nothing = torch.zeros(len(exact_MN[0]), dtype=torch.float64)
    case = Case(
        source, path, x_MK, torch.where(known_MN, y_MN, 0.0), known_MN, exact_MN, weight_M, rows_M, nothing, nothing
    )
    everything = torch.arange(exact_MN.shape[1])
    floor2_N = case.floor2(exact_MN, w_KN, x_MK)
    return Case(
        source, path, x_MK, case.y_MN, known_MN, exact_MN, weight_M, rows_M, case.error2(exact_MN, everything), floor2_N
    )
