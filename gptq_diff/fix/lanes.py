"""The largest fp16 chain of the fast path in every group of a linear, as far as it matters."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.headroom import Share
from gptq_diff.kernels.fastpath import CHAINS

_SUMS = 1 << 22
"""Partial sums that are held at a time."""


def large_sums(x_MK: torch.Tensor, share: Share, above: float) -> dict[int, float]:
    """Group -> magnitude of its largest partial sum before the scale, for the groups in which one passes `above`.

    x_MK: float16, finite. 2 and 3 bit: the sum of a word's two chains counts too; 8 bit has no such chain.
    """
    chain, codes_KN, group_K = CHAINS[share.bits], share.codes_KN, share.group_K
    if not chain.lane:
        return {}
    if share.order_K is not None:
        x_MK, codes_KN, group_K = x_MK[:, share.order_K], codes_KN[share.order_K], group_K[share.order_K]
    x_MK = x_MK.double()
    largest_code = float(codes_KN.abs().max())
    bound_MW = x_MK.abs().view(len(x_MK), -1, chain.word).sum(dim=2) * largest_code
    found: dict[int, float] = {}
    for word in (bound_MW > above).any(dim=0).nonzero().flatten().tolist():
        first = word * chain.word
        rows_M = (bound_MW[:, word] > above).nonzero().flatten()
        x_MT = x_MK[rows_M, first : first + chain.word]
        largest = _largest(x_MT, codes_KN[first : first + chain.word].double(), paired=share.bits != 4)
        group = int(group_K[first])
        if largest > max(above, found.get(group, 0.0)):
            found[group] = largest
    return found


def _largest(x_MT: torch.Tensor, codes_TN: torch.Tensor, *, paired: bool) -> float:
    """Over the two chains of a word: even and odd rows, each summed in order."""
    largest = 0.0
    at_once = max(1, _SUMS // codes_TN.numel())
    for part_MT in x_MT.split(at_once):  # type: ignore[no-untyped-call]
        products = part_MT[:, :, None] * codes_TN
        lanes = [products[:, lane::2].cumsum(dim=1) for lane in (0, 1)]
        largest = max(largest, *(float(sums.abs().max()) for sums in lanes))
        if paired:
            largest = max(largest, float((lanes[0][:, -1] + lanes[1][:, -1]).abs().max()))
    return largest
