"""From gate and up to down_proj's input: act(gate) * up."""

from __future__ import annotations

from typing import Callable

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision, finite_rows

VANISHES = 2.0**-126
"""Share of a gate below which an activation may give 0: exp(-gate) passes float32's largest value at a gate of -88, and
torch's silu in float32 is 0 from there on, where the exact one is gate * exp(gate)."""

Activation = Callable[[torch.Tensor], torch.Tensor]

KNOWN: dict[str, Activation] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu-tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
"""Activations by name; a model's own is one of the first three, the others are what a wrong one may be."""


def gated(gate_TN: torch.Tensor, up_TN: torch.Tensor, activation: Activation, precision: Precision) -> Computed:
    """The activation is rounded, then its product with up. gate, up: as captured, bias included."""
    gate, up = gate_TN.to(precision.wide), up_TN.to(precision.wide)
    (ok_gate, largest_gate), (ok_up, largest_up) = finite_rows(gate), finite_rows(up)
    ok_T, largest_T = ok_gate & ok_up, torch.maximum(largest_gate, largest_up)
    if not bool(ok_T.all()):
        gate, up = torch.where(ok_T[:, None], gate, 0.0), torch.where(ok_T[:, None], up, 0.0)
        largest_T = torch.where(ok_T, largest_T, 0.0)
    exact = activation(gate).mul_(up)
    variance = exact.square().mul_(2.0 * precision.rms**2)
    variance += precision.least**2 * (up.square() + 1.0)
    variance += (gate * up * VANISHES).square_()
    return Computed(exact, variance, ok_T, torch.zeros_like(ok_T), float(largest_T.amax()))
