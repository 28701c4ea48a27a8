"""Scales of some groups times a constant: one factor a group for all columns that err, found by least squares."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.common_factor import common_factor
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts

MOST_COLUMNS = 256
"""Columns that factors are solved from."""
FEWEST_COLUMNS = 8
"""With fewer, a factor a group is no more than a number for each that was to be explained."""
VALUES_A_GROUP = 4
"""Outputs that there must be for each factor."""
SURELY = 5.0
"""Standard errors that a group's factor must be away from 1."""
EXPLAINED = 0.5
"""Share of the squared error that the factors must explain to be worth trying."""
WHOLE = 0.02
"""Nearer to 0 or 2 a group is left out or added twice: another hypothesis."""


@hypothesis
def scales_times_a_factor(case: Case) -> Iterator[Variant]:
    """Nothing where one factor for all groups does: that is no fault of scales by group."""
    factor_G = factors(case)
    if factor_G is None or common_factor(case) is not None:
        return
    chosen = torch.nonzero(factor_G != 1.0).flatten().tolist()

    def scaled(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(scales_GC=parts.scales_GC * factor_G[:, None])

    told = ", ".join(f"by {float(factor_G[g]):.4g} in group {g}" for g in chosen[:4])
    more = f" and in {len(chosen) - 4} other groups" if len(chosen) > 4 else ""
    yield Variant("scale-factor", "scale-group", f"scales were multiplied {told}{more}", scaled)


def factors(case: Case) -> torch.Tensor | None:
    """float32 [G]: what every group's scales seem to be multiplied by, 1 where that is not sure.

    None where no group's are, or where a factor a group explains too little.
    """
    groups, group_K = case.source.spec.groups, case.source.own.group_K
    columns = torch.nonzero(case.suspects).flatten()
    columns = columns[:: max(1, -(-len(columns) // MOST_COLUMNS))]
    known_MC = case.known_MN[:, columns]
    if groups < 2 or len(columns) < FEWEST_COLUMNS or int(known_MC.sum()) < VALUES_A_GROUP * groups:
        return None
    unit_MC = (case.weight_M.sqrt()[:, None] / case.floor2_N[columns].sqrt()) * known_MC
    gap_X = ((case.y_MN - case.exact_MN)[:, columns].double() * unit_MC).flatten()
    w_KC = case.w_KN[:, columns]
    rows = [torch.nonzero(group_K == g).flatten() for g in range(groups)]
    share_GX = torch.stack([((case.x_MK[:, r] @ w_KC[r]).double() * unit_MC).flatten() for r in rows])
    gram_GG = share_GX @ share_GX.T
    gram_GG = gram_GG + torch.eye(groups, dtype=torch.float64) * (1e-12 * gram_GG.trace() + 1e-300)
    inverse_GG = torch.linalg.inv(gram_GG)
    off_G = inverse_GG @ (share_GX @ gap_X)
    left = float((gap_X - off_G @ share_GX).square().sum())
    if left > (1.0 - EXPLAINED) * float(gap_X.square().sum()):
        return None
    error_G = (inverse_GG.diagonal() * left / max(1, len(gap_X) - groups)).clamp_min(0.0).sqrt()
    sure_G = off_G.abs() > SURELY * error_G
    whole_G = (off_G.abs() - 1.0).abs() < WHOLE
    if not bool((sure_G & ~whole_G).any()):
        return None
    return torch.where(sure_G, 1.0 + off_G, 1.0).float()
