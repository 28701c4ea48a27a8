"""Sharper error figures from the data themselves, for calls that the closed formulas do not explain.

The closed formulas (gptq_diff.numerics.floors) take the K products as if any order were as good as another, the
rounding errors of the weights as independent, and the error as spread over many outputs. None of it holds everywhere:
halves of the input that cancel have large sums in the middle and a small one at the end; equal codes of one group are
rounded by equal amounts; a massive output alone can carry nearly all of a row's rounding. Here partial sums are
computed instead of assumed. What is returned explains sizes of roundings only, so wrong arithmetic stays unexplained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptq_diff.numerics.floors import HALF_RMS, HALF_WEIGHTS, MMA_K, SINGLE_RMS, V1_BLOCK

STRIP = 1024
"""Columns of W that are taken at a time, to bound memory."""
ROWS = 512
"""Rows that are widened to float64 at a time."""
RARE = 5.2
"""One row in ten million healthy ones passes this many standard deviations."""
_SINGLE_EXPONENT = 0x7F800000
"""Bits of a float32 that hold its exponent: with the others zero it is the power of two at or below the value."""
FACTOR2 = 9.0
"""Square of the factor that the judge grants anyway (gptq_diff.compare.figures.FACTOR)."""


def row_norm2(values_MN: torch.Tensor) -> torch.Tensor:
    """float64 [M]: squared l2 norm of every row of a float32 matrix."""
    norm_M: torch.Tensor = torch.linalg.vector_norm(values_MN, dim=1)
    return norm_M.double().square_()


def weighted_squares(values_MK: torch.Tensor, weight_K: torch.Tensor) -> torch.Tensor:
    """float64 [M]: every row's squares, times these weights (float64), added up.

    On a CPU some rows at a time, through the same memory: a whole copy in float64 costs more than the sums.
    """
    if values_MK.device.type != "cpu" or not values_MK.shape[1]:
        return values_MK.double().square_() @ weight_K
    total_M = torch.empty(len(values_MK), dtype=torch.float64)
    memory = torch.empty(min(ROWS, len(values_MK)), values_MK.shape[1], dtype=torch.float64)
    for first in range(0, len(values_MK), ROWS):
        some_mK = values_MK[first : first + ROWS]
        torch.mv(memory[: len(some_mK)].copy_(some_mK).square_(), weight_K, out=total_M[first : first + ROWS])
    return total_M


@dataclass(frozen=True)
class Rounding:
    """What rounding is expected to do to every output.

    known2_MN: float64 [M, N], squares of errors that are certain: those of weights rounded to half.
    variance_MN: float64 [M, N], of the random rest.
    """

    known2_MN: torch.Tensor
    variance_MN: torch.Tensor

    def by_row(self, w_KN: torch.Tensor) -> torch.Tensor:
        """float64 [M]: expected squared error of every row, over all columns."""
        return self.known2_MN.sum(dim=1) + expected2(self.variance_MN, alike(w_KN))

    def by_column(self, x_MK: torch.Tensor, weight_M: torch.Tensor) -> torch.Tensor:
        """float64 [N]: expected squared error of every column, over all rows, each row's squares times its weight."""
        total_N: torch.Tensor = weight_M @ self.known2_MN
        return total_N + expected2((self.variance_MN * weight_M[:, None]).T, alike(x_MK.T))


def half_weight_error2(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """float64 [M, N]: squares of x (half(W) - W): what rounding the weights to float16 does."""
    parts = []
    for start in range(0, w_KN.shape[1], STRIP):
        part = w_KN[:, start : start + STRIP]
        parts.append((x_MK @ part.to(torch.float16).to(torch.float32).sub_(part)).double().square_())
    return torch.cat(parts, dim=1)


def square(sums_MN: torch.Tensor) -> torch.Tensor:
    """float64: the squares."""
    return sums_MN.double().square_()


def half_variance(sums_MN: torch.Tensor) -> torch.Tensor:
    """float64: ulp^2 / 12 of each value as a float16; its own ulp, for a column can sit just above a power of two."""
    exponent = torch.frexp(sums_MN.abs().clamp_min(2.0**-14))[1]  # value = m * 2^exponent, m from 1/2 to 1
    return torch.exp2(2.0 * (exponent.double() - 11.0)) / 12.0


def single_variance(sums_MN: torch.Tensor) -> torch.Tensor:
    """float64: the same of each value as a float32, from its exponent's bits; 0 for 0 and for subnormals."""
    power = sums_MN.float().view(torch.int32).bitwise_and(_SINGLE_EXPONENT).view(torch.float32)
    return power.double().square_().mul_(2.0**-46 / 12.0)


def running_sums2(
    x_MK: torch.Tensor, w_KN: torch.Tensor, block: int = MMA_K, *,
    measure: Callable[[torch.Tensor], torch.Tensor] = square,
) -> torch.Tensor:  # fmt: skip
    """float64 [M, N]: sum over blocks of K, in ascending order, of the running sum's measure (square) after each."""
    squares = x_MK.new_zeros(x_MK.shape[0], w_KN.shape[1], dtype=torch.float64)
    strip = STRIP if x_MK.device.type == "cpu" else max(w_KN.shape[1], 1)  # on a GPU launches cost more than memory
    for first in range(0, w_KN.shape[1], strip):
        columns = slice(first, first + strip)
        running = x_MK.new_zeros(x_MK.shape[0], w_KN[:, columns].shape[1])
        for start in range(0, x_MK.shape[1], block):
            running += x_MK[:, start : start + block] @ w_KN[start : start + block, columns]
            squares[:, columns] += measure(running)
    return squares


def lane_sums2(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """float64 [M, N]: squares of every partial sum that exllama v1 rounds (gptq_diff.numerics.floors.exllama_v1)."""
    squares = x_MK.new_zeros(x_MK.shape[0], w_KN.shape[1], dtype=torch.float64)
    out_MN = torch.zeros_like(squares)
    for first in range(0, x_MK.shape[1], V1_BLOCK):
        lanes = squares.new_zeros(x_MK.shape[0], 2, w_KN.shape[1])
        for start in range(first, min(first + V1_BLOCK, x_MK.shape[1]), 8):
            rows = slice(start, start + 8)
            products = (x_MK[:, rows, None] * w_KN[None, rows]).double()
            terms = products.reshape(len(x_MK), -1, 2, w_KN.shape[1])  # [M, 4, lane, N]
            chains = terms.cumsum(dim=1)
            lanes += chains[:, -1]
            squares += chains.square().sum(dim=(1, 2)) + lanes.square().sum(dim=1)
        block_MN = lanes.sum(dim=1)
        out_MN += block_MN
        squares += block_MN.square() + out_MN.square()
    return squares


def alike(w_KN: torch.Tensor) -> torch.Tensor:
    """int64 [N]: one number for all columns that are multiples of each other; such columns round alike.

    Told apart by their cosine with one random vector, to five digits.
    """
    generator = torch.Generator().manual_seed(0)
    probe_K = torch.randn(w_KN.shape[0], generator=generator, dtype=torch.float64).to(w_KN.device)
    length_N = torch.linalg.vector_norm(w_KN, dim=0).double().clamp_min(1e-300)
    cosine_N = (probe_K.to(torch.float32) @ w_KN).double().abs() / length_N
    _, kind_N = torch.unique((cosine_N * 1e5).round(), return_inverse=True)
    kinds: torch.Tensor = kind_N
    return kinds


def expected2(variance_MN: torch.Tensor, alike_N: torch.Tensor) -> torch.Tensor:
    """float64 [M]: the squared error norm to expect of these variances, raised where few outputs carry it.

    A sum of squares of n independent errors is chi-squared with n degrees of freedom; of unequal ones nearly so with
    n = (sum v)^2 / sum v^2 (Satterthwaite, Biometrics Bulletin 2, 1946). From n = 5 on it stays below 9 times its
    mean but once in ten million; for fewer the mean is raised so that it does there too (quantile of Wilson and
    Hilferty, PNAS 17, 1931: from n = 1 on, by up to 3.8).
    """
    by_kind = variance_MN.new_zeros(len(variance_MN), int(alike_N.max()) + 1, dtype=torch.float64)
    by_kind.index_add_(1, alike_N, variance_MN.double())
    total_M = by_kind.sum(dim=1)
    n_M = total_M.square() / by_kind.square().sum(dim=1).clamp_min(1e-300)
    spread_M = 2.0 / (9.0 * n_M.clamp_min(1.0))
    quantile_M = (1.0 - spread_M + RARE * spread_M.sqrt()) ** 3
    raised_M: torch.Tensor = total_M * (quantile_M / FACTOR2).clamp_min(1.0)
    return raised_M


def own_rounding(path: str, x_MK: torch.Tensor, w_KN: torch.Tensor) -> Rounding | None:
    """Rounding of these rows from their own partial sums; None where no such figure exists.

    x_MK, w_KN: float32, finite. The exllama fast path has its own figure, from the simulator
    (gptq_diff.compare.refine), and the exact path one for every order of K (gptq_diff.numerics.orders).
    """
    none = x_MK.new_zeros((), dtype=torch.float64).expand(x_MK.shape[0], w_KN.shape[1])
    if path in HALF_WEIGHTS:
        variance = SINGLE_RMS**2 * MMA_K * running_sums2(x_MK, w_KN)
        variance += half_variance(x_MK @ w_KN)
        return Rounding(half_weight_error2(x_MK, w_KN), variance)
    if path == "exllama-v1":
        return Rounding(none, HALF_RMS**2 * lane_sums2(x_MK, w_KN))
    if path == "exllama-reconstruct":
        return Rounding(half_weight_error2(x_MK, w_KN), running_sums2(x_MK, w_KN, measure=half_variance))
    return None
