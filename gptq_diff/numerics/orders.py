"""How much a float32 product rounds in every order that matrix libraries add its K products up in.

They go through K in blocks, add each block up from zero, and then the blocks to each other. A block that starts anew
has other partial sums than the same products in one chain: larger ones where the sum so far and what follows differ in
sign. How long blocks are depends on the library, the machine, the number of threads and M, and no library tells; but it
is one order for a whole call. So the figure of a row or a column is the largest that any one usual order gives it,
never a mixture of several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.numerics.floors import MMA_K
from gptq_diff.numerics.partial_sums import alike, expected2, single_variance

PARTS = range(1, 9)
"""K in so many equal parts. 1 is one chain; threads share K, and what is a little longer than a block is halved."""
BLOCKS = (128, 256, 384)
"""Lengths of a block whatever K is: 128 gptq_diff.kernels.tiled; 384 MKL, and OpenBLAS for many a machine."""
AT_ONCE = 1 << 18
"""Numbers that are held at a time: they stay in a cache."""


def usual_blocks(k: int) -> list[int]:
    """Lengths of the blocks that K is usually added up in, multiples of 16, the longest first."""
    equal = {-(-k // (parts * MMA_K)) * MMA_K for parts in PARTS}
    return sorted(equal | {block for block in BLOCKS if block < k}, reverse=True)


def sums_after(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """float32 [1 + K / 16, M, N]: what x W has come to at first, zero, and after every 16 rows of K."""
    steps = -(-x_MK.shape[1] // MMA_K)
    missing = steps * MMA_K - x_MK.shape[1]
    x_TMK = torch.nn.functional.pad(x_MK, (0, missing)).view(-1, steps, MMA_K).transpose(0, 1)
    w_TKN = torch.nn.functional.pad(w_KN, (0, 0, 0, missing)).view(steps, MMA_K, -1)
    added_TMN = torch.bmm(x_TMK, w_TKN)
    return torch.cat([torch.zeros_like(added_TMN[:1]), added_TMN.cumsum(dim=0, dtype=torch.float64).float()])


def blocked_variance(after_TMN: torch.Tensor, block: int) -> torch.Tensor:
    """float64 [M, N]: variance of the rounding if K is added up in blocks of that many rows, a multiple of 16.

    after_TMN: as from sums_after. Of a block's running sums every sixteenth is known and stands for the others. Each
    has the variance of its own spacing, since one row's sums can all lie just above a power of two.
    """
    steps, each = len(after_TMN) - 1, block // MMA_K
    begun = torch.arange(steps, device=after_TMN.device) // each * each
    variance_MN = MMA_K * single_variance(after_TMN[1:] - after_TMN[begun]).sum(dim=0)
    if steps > each:  # the first block is no addition
        variance_MN += single_variance(after_TMN[[*range(2 * each, steps, each), steps]]).sum(dim=0)
    return variance_MN


def variances(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """float64 [orders, M, N]: the variance of the rounding in every usual order, some columns at a time."""
    orders, strips = usual_blocks(x_MK.shape[1]), []
    for columns in _slices(w_KN.shape[1], len(x_MK) * x_MK.shape[1] // MMA_K):
        after_TMC = sums_after(x_MK, w_KN[:, columns])
        strips.append(torch.stack([blocked_variance(after_TMC, block) for block in orders]))
    return torch.cat(strips, dim=2)


@dataclass(frozen=True)
class SingleSums:
    """What rounding is expected to do to x W in float32, in whatever order it was added up.

    x_MK, w_KN: float32, finite. Stands where gptq_diff.numerics.partial_sums.Rounding stands for other paths.
    """

    x_MK: torch.Tensor
    w_KN: torch.Tensor

    def by_row(self, w_KN: torch.Tensor) -> torch.Tensor:
        """float64 [M]: expected squared error of every row over all columns, in the order that rounds that row most."""
        kind_N, strips = alike(w_KN), self._strips(len(self.x_MK), w_KN.shape[1])
        return torch.cat([_most(variances(self.x_MK[rows], self.w_KN), kind_N) for rows in strips])

    def by_column(self, x_MK: torch.Tensor, weight_M: torch.Tensor) -> torch.Tensor:
        """float64 [N]: the same of every column over all rows, each row's squares times its weight."""
        kind_M, strips = alike(x_MK.T), self._strips(self.w_KN.shape[1], len(x_MK))
        made = (variances(self.x_MK, self.w_KN[:, columns]) for columns in strips)
        return torch.cat([_most((made_OMC * weight_M[:, None]).transpose(1, 2), kind_M) for made_OMC in made])

    def _strips(self, count: int, others: int) -> list[slice]:
        return _slices(count, others * len(usual_blocks(self.x_MK.shape[1])))


def _slices(count: int, each: int) -> list[slice]:
    """Parts of `count` rows or columns which hold `each` numbers; AT_ONCE in all, where one does not hold more."""
    width = max(1, AT_ONCE // max(each, 1))
    return [slice(first, first + width) for first in range(0, count, width)]


def _most(variance_OAB: torch.Tensor, alike_B: torch.Tensor) -> torch.Tensor:
    """float64 [A]: what to expect over all B in the order that makes it largest."""
    expected_OA = torch.stack([expected2(variance_AB, alike_B) for variance_AB in variance_OAB])
    return expected_OA.amax(dim=0)
