"""The rotary position embedding: angles by position, and a head's two halves turned by them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gptq_diff.diagnose.between.computed import Precision
from gptq_diff.diagnose.between.shape import Llama3, Shape

ANGLE = 2.0**-23
"""Relative error of an angle: frequency and position are multiplied in float32."""


@dataclass(frozen=True)
class Turn:
    """cos, sin: [T, d], of angles that were computed in float32. angle2: their squares."""

    cos: torch.Tensor
    sin: torch.Tensor
    angle2: torch.Tensor


def turns(shape: Shape, rows: int, dtype: torch.dtype) -> Turn:
    """The angles of positions 0 to rows - 1, every frequency for both halves of a head."""
    d = shape.head_dim
    frequency = 1.0 / (shape.theta ** (torch.arange(0, d, 2, dtype=torch.int64).float() / d))
    frequency = frequency / shape.slow
    if shape.llama3 is not None:
        frequency = _llama3(frequency, shape.llama3)
    angle = torch.arange(rows, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=1).double()
    return Turn(angle.cos().to(dtype), angle.sin().to(dtype), angle.square().to(dtype))


def _llama3(frequency: torch.Tensor, s: Llama3) -> torch.Tensor:
    """Long wavelengths slowed down, short ones kept, those between mixed (Llama 3.1, models/llama3/api/model.py)."""
    wavelength = 2 * math.pi / frequency
    smooth = ((s.context / wavelength - s.low) / (s.high - s.low)).clamp(0.0, 1.0)
    mixed: torch.Tensor = (1 - smooth) * frequency / s.factor + smooth * frequency
    return mixed


def turned(x_HTd: torch.Tensor, turn: Turn, precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """The turned heads, and each value's variance: cos and sin rounded, both products, and their sum.

    x_HTd: [heads, T, d], wide.
    """
    half = x_HTd.shape[-1] // 2
    crossed = torch.cat([-x_HTd[..., half:], x_HTd[..., :half]], dim=-1)
    along, across = x_HTd * turn.cos, crossed * turn.sin
    out = along + across
    products = along.square_().add_(across.square_())
    variance = products.mul_(2.0).add_(out.square()).mul_(precision.rms**2).add_(3 * precision.least**2)
    variance += ANGLE**2 * turn.angle2 * (x_HTd.square() + crossed.square_())
    return out, variance
