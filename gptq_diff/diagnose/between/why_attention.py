"""What is wrong where o_proj's input is not the attention of q, k and v: the rotary embedding, or the attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.between.attention import Variant, attention, queries
from gptq_diff.diagnose.between.computed import Computed, Precision
from gptq_diff.diagnose.between.named import Named, explains, number
from gptq_diff.diagnose.between.shape import Shape

TOKENS, QUERIES = 256, 48
"""Of a long prompt: the first tokens and some of their queries are what hypotheses are tried on first."""
ROTARY, ATTENTION = "rotary", "attention"
VARIANTS = {
    "without a rotary embedding": (ROTARY, Variant(rotary=False)),
    "turning neighbours instead of halves": (ROTARY, Variant(interleaved=True)),
    "turning backwards": (ROTARY, Variant(backwards=True)),
    "giving query head h the kv head h modulo their number": (ATTENTION, Variant(mixed_heads=True)),
    "without the causal mask": (ATTENTION, Variant(causal=False)),
}
NICE = (1e4, 5e4, 1e5, 1.3e5, 2.5e5, 5e5, 1e6, 5e6, 1e7)
"""Rotary bases in use; named exactly where one of them is it."""


@dataclass(frozen=True)
class Heads:
    """What attention was given and gave: q, k, v [T, ...] with bias, and the captured mean of v."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    captured: torch.Tensor
    shape: Shape
    precision: Precision

    def computed(self, at: torch.Tensor, shape: Shape | None = None, variant: Variant | None = None) -> Computed:
        """The attention of these queries, as another model would have it."""
        return attention(self.q, self.k, self.v, shape or self.shape, self.precision, at, variant or Variant())

    def first(self) -> Heads:
        """The first tokens, and the first kv head with its queries."""
        s, t = self.shape, slice(0, TOKENS)
        d, wide = s.head_dim, s.head_dim * (s.heads // s.kv_heads)
        return replace(
            self, q=self.q[t, :wide], k=self.k[t, :d], v=self.v[t, :d], captured=self.captured[t, :wide],
            shape=replace(s, heads=s.heads // s.kv_heads, kv_heads=1),
        )  # fmt: skip


def why_attention(heads: Heads) -> Named:
    """Variants by name, then the base, the divisor of the frequencies, and the scale that fit best."""
    at = queries(len(heads.q), QUERIES)
    for how, (name, variant) in VARIANTS.items():
        if explains(heads.computed(at, variant=variant), heads.captured[at], heads.precision):
            return Named(name, f"attention {how} gives the captured values", how)
    return _other_base(heads) or _slower(heads) or _other_scale(heads) or _window(heads) or Named(ATTENTION)


def _other_base(heads: Heads) -> Named | None:
    def based(theta: float) -> tuple[Shape, Variant]:
        return replace(heads.shape, theta=theta), Variant()

    for theta in NICE:
        if _fits(heads, *based(theta)):
            return Named(ROTARY, f"a rotary base of {theta:,.0f} gives the captured values, the model has "
                                 f"{heads.shape.theta:,.0f}", "base")  # fmt: skip
    theta = _best(heads, based, 1e2, 1e9)
    if not _fits(heads, *based(theta)):
        return None
    rounded = number(float(f"{theta:.2g}"))
    return Named(
        ROTARY, f"a rotary base of about {rounded} gives the captured values, the model has "
        f"{heads.shape.theta:,.0f}", "base",
    )  # fmt: skip


def _slower(heads: Heads) -> Named | None:
    def slowed(factor: float) -> tuple[Shape, Variant]:
        return replace(heads.shape, slow=heads.shape.slow * factor), Variant()

    factor = _best(heads, slowed, 1 / 16, 16)
    if not _fits(heads, *slowed(factor)):
        return None
    return Named(ROTARY, f"rotary frequencies divided by another {number(factor)} give the captured values", "slower")


def _other_scale(heads: Heads) -> Named | None:
    def scaled(factor: float) -> tuple[Shape, Variant]:
        return heads.shape, Variant(scale=factor)

    factor = _best(heads, scaled, 1 / 128, 128)
    if not _fits(heads, *scaled(factor)):
        return None
    used, own = heads.shape.scale * factor, heads.shape.scale
    return Named(
        ATTENTION, f"scores times {number(used)} give the captured values, the model has {number(own)}", "scale"
    )


def _window(heads: Heads) -> Named | None:
    """The first row that is wrong says how many tokens are seen."""
    at = queries(len(heads.q), TOKENS)
    own = heads.computed(at)
    error2 = (heads.captured[at].to(own.exact_TN.dtype) - own.exact_TN).square() / own.variance_TN
    wrong = at[error2.mean(dim=1) > FACTOR**2]
    if len(wrong) == 0 or int(wrong[0]) == 0 or not _fits(heads, heads.shape, Variant(window=int(wrong[0]))):
        return None
    return Named(ATTENTION, f"seeing the last {int(wrong[0])} tokens alone gives the captured values", "window")


def _fits(heads: Heads, shape: Shape, variant: Variant) -> bool:
    at = queries(len(heads.q), QUERIES)
    return explains(heads.computed(at, shape, variant), heads.captured[at], heads.precision)


def _best(heads: Heads, model: Callable[[float], tuple[Shape, Variant]], low: float, high: float) -> float:
    """The number between low and high that comes nearest, by a grid over its logarithm and golden sections."""
    part = heads.first()
    at = queries(len(part.q), QUERIES)
    wanted = part.captured[at].double()

    def off(logarithm: float) -> float:
        shape, variant = model(math.exp(logarithm))
        shape = replace(part.shape, theta=shape.theta, slow=shape.slow)
        return float(torch.linalg.vector_norm(part.computed(at, shape, variant).exact_TN.double() - wanted))

    grid = torch.linspace(math.log(low), math.log(high), 65).tolist()
    found = min(range(len(grid)), key=lambda i: off(grid[i]))
    a, b = grid[max(found - 1, 0)], grid[min(found + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(30):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        if off(c) < off(d):
            b = d
        else:
            a = c
    return math.exp((a + b) / 2)
