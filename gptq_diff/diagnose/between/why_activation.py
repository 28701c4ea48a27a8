"""Which activation, if not the model's, gives down_proj's input."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.computed import Precision
from gptq_diff.diagnose.between.named import Named, explains

NAME = "activation"


def why_activation(
    gate_TN: torch.Tensor, up_TN: torch.Tensor, captured_TN: torch.Tensor, own: str, precision: Precision
) -> Named:
    """Every known activation is tried, on gate as it should be and on up in its place."""
    for first, second, of in ((gate_TN, up_TN, "gate) * up"), (up_TN, gate_TN, "up) * gate")):
        for name, activation in KNOWN.items():
            if explains(gated(first, second, activation, precision), captured_TN, precision):
                return Named(NAME, f"{name}({of} gives the captured values, where the model has {own}(gate) * up", name)
    return Named(NAME)
