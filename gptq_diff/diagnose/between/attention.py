"""From q, k and v to o_proj's input: rotary embedding, causal softmax of the scores, the mean of v that it weights.

A score errs by what the rounding of its turned q and k does. That of q is one for all scores of a row, so its effect on
the mean is bounded by the Cauchy-Schwarz inequality; that of k is independent from token to token. Engines round the
softmax's weights to the skeleton's dtype and sum in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision, finite_rows
from gptq_diff.diagnose.between.rotary import Turn, turned, turns
from gptq_diff.diagnose.between.shape import Shape
from gptq_diff.numerics.floors import SINGLE_RMS

EXP = 2.0**-20
"""Relative error of exp in the softmax: torch's CPU kernel grants itself 20 bits (aten/src/ATen/native/cpu)."""
MOST_ROWS = 128
"""Rows that are judged of a long prompt: evenly spread, the first and the last among them."""


@dataclass(frozen=True)
class Variant:
    """Another attention than the model's, to be tried on one that is wrong.

    scale: what scores are multiplied by, over the model's own. interleaved: neighbours are turned, not halves.
    backwards: turned the other way. mixed_heads: query head h takes kv head h modulo their number.
    causal: later tokens are not seen. window: how many tokens are.
    """

    scale: float = 1.0
    rotary: bool = True
    interleaved: bool = False
    backwards: bool = False
    mixed_heads: bool = False
    causal: bool = True
    window: int | None = None


PLAIN = Variant()


def queries(rows: int, most: int = MOST_ROWS) -> torch.Tensor:
    """int64: the rows that are recomputed."""
    if rows <= most:
        return torch.arange(rows)
    return torch.arange(most) * (rows - 1) // (most - 1)


def attention(
    q_TN: torch.Tensor, k_TN: torch.Tensor, v_TN: torch.Tensor, shape: Shape, precision: Precision,
    at: torch.Tensor, variant: Variant = PLAIN, turn: Turn | None = None,
) -> Computed:  # fmt: skip
    """The mean of v for the queries `at`; q, k, v as captured, bias included. [len(at), heads * d].

    turn: the angles of all positions, where they are known already.
    """
    wide = [t.to(precision.wide) for t in (q_TN, k_TN, v_TN)]
    known = [finite_rows(t) for t in wide]
    ok_q, ok_kv = known[0][0], known[1][0] & known[2][0]
    largest = max(float(torch.where(ok, size, 0.0).amax()) for ok, size in known)
    if not bool((ok_q & ok_kv).all()):  # their rows are left out anyway
        wide = [torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in wide]
    numbers = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (t.reshape(-1, n, shape.head_dim).transpose(0, 1) for t, n in zip(wide, numbers))
    turn = turn or turns(shape, q_TN.shape[0], precision.wide)
    if variant.backwards:
        turn = replace(turn, sin=-turn.sin)
    if variant.rotary:
        order = _pairs(shape.head_dim) if variant.interleaved else slice(None)
        (q, var_q), (k, var_k) = (turned(t[..., order], turn, precision) for t in (q, k))
    else:
        var_q, var_k = torch.zeros_like(q), torch.zeros_like(k)
    q, var_q = q[:, at], var_q[:, at]
    exact, variance = _mean(q, var_q, k, var_k, v, shape, precision, at, variant)
    ok_T = ok_q & (torch.cumsum((~ok_kv).long(), dim=0) == 0)
    return Computed(_flat(exact), _flat(variance), ok_T[at], (~ok_kv).any().expand(len(at)), largest)


def _pairs(d: int) -> torch.Tensor:
    """Neighbours brought to where the two halves are: turning these is turning neighbours."""
    return torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])


def _flat(t_HTd: torch.Tensor) -> torch.Tensor:
    return t_HTd.transpose(0, 1).reshape(t_HTd.shape[1], -1)


def _mean(
    q: torch.Tensor, var_q: torch.Tensor, k: torch.Tensor, var_k: torch.Tensor, v: torch.Tensor, shape: Shape,
    precision: Precision, at: torch.Tensor, variant: Variant,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(mean of v, its variance), [heads, queries, d]."""
    groups, (rows, d) = shape.heads // shape.kv_heads, k.shape[1:]
    scale = shape.scale * variant.scale

    def by_kv(t: torch.Tensor) -> torch.Tensor:
        """[kv heads, query heads of each * queries, d]: what takes the same k and v, below each other."""
        shown = t.reshape(groups, shape.kv_heads, -1, d).transpose(0, 1) if variant.mixed_heads else t
        return shown.reshape(shape.kv_heads, -1, d)

    q, var_q, k2 = by_kv(q), by_kv(var_q), k.square()
    kt, k2t = k.transpose(1, 2), k2.transpose(1, 2)
    score = (q @ kt).mul_(scale)
    q2 = q.square()
    from_q = (var_q @ k2t).mul_(scale**2)
    summed = (q2 @ k2t).mul_(scale**2 * SINGLE_RMS**2 * d / 2)
    from_k = (
        (q2 @ var_k.transpose(1, 2)).mul_(scale**2).add_(summed).add_(score.square().mul_(SINGLE_RMS**2)).add_(EXP**2)
    )
    hidden = _hidden(at, rows, variant, shape).repeat(groups, 1)
    weight = torch.softmax(score.masked_fill_(hidden, float("-inf")), dim=-1)
    weight2 = weight.square()
    v2 = v.square()
    both = torch.cat([v, v2], dim=-1)
    means = weight @ both
    mean, mean2 = means[..., :d], means[..., d:]
    out2 = mean.square()
    spread = (mean2 - out2).clamp_min_(0.0)
    variance = spread * (weight * from_q).sum(dim=-1, keepdim=True)
    from_k *= weight2
    sums = from_k @ both
    variance += sums[..., d:] - 2 * mean * sums[..., :d] + out2 * from_k.sum(dim=-1, keepdim=True)
    variance += (weight2 @ v2).mul_(precision.rms**2) + mean2 * (SINGLE_RMS**2 * rows)
    variance.clamp_min_(0.0).add_(out2.mul_(precision.rms**2)).add_(precision.least**2 * (1 + rows))
    return _by_head(mean, groups, variant), _by_head(variance, groups, variant)


def _by_head(t: torch.Tensor, groups: int, variant: Variant) -> torch.Tensor:
    """[heads, queries, d] again."""
    kv, _, d = t.shape
    apart = t.reshape(kv, groups, -1, d)
    return (apart.transpose(0, 1) if variant.mixed_heads else apart).reshape(kv * groups, -1, d)


def _hidden(at: torch.Tensor, rows: int, variant: Variant, shape: Shape) -> torch.Tensor:
    """The tokens that a query does not see, bool [queries, T]."""
    behind = at[:, None] - torch.arange(rows)
    hidden = behind < 0 if variant.causal else torch.zeros_like(behind, dtype=torch.bool)
    window = variant.window or shape.window
    return hidden if window is None else hidden | (behind >= window)
