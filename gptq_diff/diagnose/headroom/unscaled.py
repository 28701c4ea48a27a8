"""Sums of unscaled products: the fast path's fp16 chains, and Marlin's whole sum with one group a column."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.headroom.nearest import Nearest, nearest
from gptq_diff.diagnose.headroom.share import Share
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.kernels.fastpath.headroom import largest_chain_sum

PAIRED = (2, 3)
"""Bit widths whose two chains are added in float16 before the scale; 4 bit adds them in float32."""


def chain_sums(x_MK: torch.Tensor, share: Share) -> Nearest | None:
    """The largest partial sum that an fp16 chain holds, or for 2 and 3 bit the sum of a word's chains.

    x_MK: float16, finite. Sums without the rounding of each step, which moves them by a thousandth.
    """
    order_K = share.order_K
    if order_K is not None:
        x_MK = x_MK[:, order_K]

    def code_rows(first: int, last: int) -> torch.Tensor:
        return share.code_rows(first, last) if order_K is None else share.codes_KN[order_K[first:last]]

    lane = largest_chain_sum(
        x_MK.contiguous().numpy(), lambda first, last: code_rows(first, last).numpy(), share.largest_code, share.bits
    )
    found = None
    if lane is not None:
        rows, word = torch.tensor(lane.rows), CHAINS[share.bits].word
        first = lane.k // word * word
        codes_T = code_rows(first, first + word)[rows - first, lane.column]
        found = nearest(lane.value, x_MK, codes_T, lane.row, lane.column, rows, order_K)
    if share.bits in PAIRED:
        codes_KN = share.codes_KN if order_K is None else share.codes_KN[order_K]
        paired = _largest_word(x_MK.float(), codes_KN.float(), CHAINS[share.bits].word, share.order_K)
        if paired is not None and (found is None or paired.bits < found.bits):
            return paired
    return found


def _largest_word(
    x_MK: torch.Tensor, codes_KN: torch.Tensor, word: int, order_K: torch.Tensor | None
) -> Nearest | None:
    starts = range(0, len(codes_KN), word)
    first = max(starts, key=lambda k: float((x_MK[:, k : k + word] @ codes_KN[k : k + word]).abs().max()))
    rows = torch.arange(first, first + word)
    return _largest_of(x_MK[:, rows] @ codes_KN[rows], x_MK, codes_KN, rows, order_K)


def whole_sums(x_MK: torch.Tensor, share: Share) -> Nearest | None:
    """The largest sum over all of K before the scale. x_MK: float16, finite."""
    x_MK, codes_KN = x_MK.float(), share.codes_KN.float()
    rows = torch.arange(len(codes_KN), device=codes_KN.device)
    return _largest_of(x_MK @ codes_KN, x_MK, codes_KN, rows, None)


def _largest_of(
    sums_MN: torch.Tensor, x_MK: torch.Tensor, codes_KN: torch.Tensor, rows: torch.Tensor, order_K: torch.Tensor | None
) -> Nearest | None:
    row, column = divmod(int(sums_MN.abs().argmax()), sums_MN.shape[1])
    return nearest(float(sums_MN[row, column]), x_MK, codes_KN[rows, column], row, column, rows, order_K)
