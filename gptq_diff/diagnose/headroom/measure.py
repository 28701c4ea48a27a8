"""All the sums that are asked for, of one layer and one stack of its inputs."""

from __future__ import annotations

from dataclasses import replace

import torch

from gptq_diff.diagnose.headroom.arithmetics import ACCUMULATOR, BLOCK, LANE, RESULT, UNSCALED
from gptq_diff.diagnose.headroom.chains_there import chain_sums_there
from gptq_diff.diagnose.headroom.nearest import Nearest
from gptq_diff.diagnose.headroom.scaled import scaled_sums
from gptq_diff.diagnose.headroom.share import Share
from gptq_diff.diagnose.headroom.unscaled import chain_sums, whole_sums
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.numerics.magnitude import row_absmax


def measure(
    x_MK: torch.Tensor, share: Share, wanted: tuple[str, ...], there: Share | None = None
) -> dict[str, Nearest]:
    """The largest sum of every arithmetic in `wanted`; what has none, because all is zero or lost, is left out.

    x_MK: float16 or float32 [M, K], anywhere; rows that are not finite as float16 are left out, their numbers kept.
    there: the same share on a GPU, which then makes all sums but the chains of other widths than 4 bit.
    """
    half_MK = x_MK.to(torch.float16)
    kept_M = torch.isfinite(row_absmax(half_MK)).nonzero().flatten()
    half_MK = half_MK if len(kept_M) == len(half_MK) else half_MK[kept_M]
    if not len(kept_M):
        return {}
    found: dict[str, Nearest | None] = {}
    chain = CHAINS[share.bits]
    if LANE in wanted and chain.lane and x_MK.shape[1] % chain.word == 0:  # a rank's rows need not be whole words
        if there is not None and share.bits == 4:
            found[LANE] = chain_sums_there(half_MK.to(there.linear.qweight.device), there)
        else:
            found[LANE] = chain_sums(half_MK.cpu(), share)
    share = share if there is None else there
    half_MK = half_MK.to(share.linear.qweight.device)
    if {BLOCK, ACCUMULATOR, RESULT} & set(wanted):
        found.update(scaled_sums(half_MK, share, wanted))
    if UNSCALED in wanted:
        found[UNSCALED] = whole_sums(half_MK, share)
    made = ((name, found.get(name)) for name in wanted)
    return {name: replace(near, row=int(kept_M[near.row])) for name, near in made if near is not None}
