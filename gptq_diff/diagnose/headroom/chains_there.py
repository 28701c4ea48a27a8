"""The fast path's fp16 chains where a GPU makes the sums: many words in a few launches, bounded like on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptq_diff.diagnose.headroom.nearest import Nearest, nearest
from gptq_diff.diagnose.headroom.share import Share
from gptq_diff.kernels.fastpath import CHAINS

LANES = STRIDE = 2
TOGETHER = 2**24
"""Products that are made at a time, 128 MiB of them."""


class _Best(NamedTuple):
    """The largest sum so far. at: of which chain, flat; step: its last product; column: of y."""

    value: float
    at: int
    step: int
    column: int


def chain_sums_there(x_MK: torch.Tensor, share: Share) -> Nearest | None:
    """As `unscaled.chain_sums`, of 4 bit, where both lie.

    x_MK: float16, finite, K a multiple of the word, at least one row.

    Chains are taken in the order of sum|x| * max|code|, which no sum of theirs can pass, until none that is left can
    pass the largest one found. Sums are exact in float64.
    """
    word = CHAINS[share.bits].word
    rows, inner = x_MK.shape
    per_chain, chains = word // STRIDE, inner // word * LANES
    ordered_MK = x_MK if share.order_K is None else x_MK[:, share.order_K]
    x_CP = ordered_MK.double().view(rows, inner // word, per_chain, LANES).transpose(2, 3).reshape(-1, per_chain)
    bounds_C, order_C = (x_CP.abs().sum(dim=1) * share.largest_code).sort(descending=True, stable=True)
    steps_P = torch.arange(per_chain, device=x_MK.device) * STRIDE
    at_a_time = max(TOGETHER // (per_chain * share.linear.spec.out_features), 1)
    best = _Best(0.0, 0, 0, 0)
    start, count = 0, max(at_a_time // 8, 1)  # a massive activation is found at once
    while start < len(order_C) and float(bounds_C[start]) > abs(best.value):
        these = order_C[start : start + count]
        rows_BP = _first_row(these, chains, word)[:, None] + steps_P
        rows_BP = rows_BP if share.order_K is None else share.order_K[rows_BP]
        sums_BPN = (x_CP[these][:, :, None] * share.codes_KN[rows_BP]).cumsum_(dim=1)
        found = int(sums_BPN.abs().argmax())
        value = float(sums_BPN.flatten()[found])
        if abs(value) > abs(best.value):
            chain, rest = divmod(found, sums_BPN[0].numel())
            best = _Best(value, int(these[chain]), *divmod(rest, sums_BPN.shape[2]))
        start, count = start + count, at_a_time
    first = int(_first_row(torch.tensor(best.at), chains, word))
    rows_T = first + steps_P[: best.step + 1]
    own_T = rows_T if share.order_K is None else share.order_K[rows_T]
    codes_T = share.codes_KN[own_T, best.column]
    return nearest(best.value, ordered_MK, codes_T, best.at // chains, best.column, rows_T, share.order_K)


def _first_row(chain: torch.Tensor, chains: int, word: int) -> torch.Tensor:
    """Row of K, in the kernel's order, of a chain's first product; chains: of one row of x."""
    within = chain % chains
    return within // LANES * word + within % LANES
