"""How far two outputs for one input are apart, in last places and in norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.capture.bits import same_bits

SIGNIFICANT = {torch.float16: (11, -14), torch.bfloat16: (8, -126), torch.float32: (24, -126)}
"""Bits of the significand and the exponent of the smallest normal number, by dtype."""


@dataclass(frozen=True)
class Distance:
    """Between two outputs.

    differing: elements with other bits. other_pattern: elements finite in one and not in the other.
    ulp: largest difference, in units in the last place of the larger value. l2_rel: norm of the difference over norm of
    the first; both over elements that are finite in both.
    """

    differing: int
    other_pattern: int
    ulp: float
    l2_rel: float


def distance(a_MN: torch.Tensor, b_MN: torch.Tensor) -> Distance:
    """How far b is from a."""
    if same_bits(a_MN, b_MN):
        return Distance(0, 0, 0.0, 0.0)
    both = torch.isfinite(a_MN) & torch.isfinite(b_MN)
    pattern = torch.isfinite(a_MN) != torch.isfinite(b_MN)
    a, b = (torch.where(both, t, 0).double() for t in (a_MN, b_MN))
    gap = (a - b).abs()
    digits, smallest = SIGNIFICANT[a_MN.dtype]
    exponent = torch.frexp(torch.maximum(a.abs(), b.abs())).exponent.clamp_min(smallest + 1)
    ulp = torch.ldexp(torch.ones_like(gap), exponent - digits)
    differing = int(((a_MN != b_MN) & ~(torch.isnan(a_MN) & torch.isnan(b_MN))).sum())
    return Distance(
        differing, int(pattern.sum()), float((gap / ulp).max()), float(gap.norm()) / max(float(a.norm()), 1e-30)
    )


def farthest(distances: list[Distance]) -> Distance:
    """The largest of each figure; all zero for none."""
    return Distance(
        max((d.differing for d in distances), default=0), max((d.other_pattern for d in distances), default=0),
        max((d.ulp for d in distances), default=0.0), max((d.l2_rel for d in distances), default=0.0),
    )  # fmt: skip
