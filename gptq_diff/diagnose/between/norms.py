"""From the residual stream to the input of q, k, v, of gate and up, and of the output head: RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision, finite_rows

ROUNDINGS = 3
"""Of each value: the stream's own, where an engine normalises before it rounds; x / rms(x); times the weight."""
COMMON = 2.0**-23
"""Relative error of a row's rms, which is computed in float32."""


def rms_norm(stream_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, precision: Precision) -> Computed:
    """The stream x / sqrt(mean x^2 + eps) * weight. stream: the skeleton's dtype; weight: wide.

    Several norms at once: streams [norms, T, H], weights [norms, 1, H], and all rows below each other come out.
    """
    h_TH = stream_TH.to(precision.wide)
    largest_T = h_TH.abs().amax(dim=-1)
    ok_T = torch.isfinite(largest_T)
    if not bool(ok_T.all()):
        h_TH, largest_T = torch.where(ok_T[..., None], h_TH, 0.0), torch.where(ok_T, largest_T, 0.0)
    exact = h_TH * torch.rsqrt(h_TH.square().mean(dim=-1, keepdim=True) + eps)
    exact *= weight_H
    variance = exact.square().mul_(ROUNDINGS * precision.rms**2 + COMMON**2)
    variance += precision.least**2 * (weight_H.square() + 1.0)
    width = exact.shape[-1]
    exact, variance, ok_T = exact.reshape(-1, width), variance.reshape(-1, width), ok_T.reshape(-1)
    return Computed(exact, variance, ok_T, torch.zeros_like(ok_T), float(largest_T.amax()))


@dataclass(frozen=True)
class Added:
    """A residual addition: the stream before it, what was added, and their sum in the skeleton's dtype, all [T, H].

    layer: the linear whose output was added; "" where the stream begins with the embedding.
    """

    before: torch.Tensor
    output: torch.Tensor
    total: torch.Tensor
    layer: str

    @property
    def overflown(self) -> torch.Tensor:
        """Where, bool [T, H], two finite summands gave a sum that is not."""
        if bool(finite_rows(self.total)[0].all()):
            return torch.zeros_like(self.total, dtype=torch.bool)
        return ~torch.isfinite(self.total) & torch.isfinite(self.before) & torch.isfinite(self.output)


def add(before: torch.Tensor, output: torch.Tensor, layer: str) -> Added:
    """One residual addition as engines do it."""
    return Added(before, output, before + output, layer)
