"""An activation that vanishes in float32 where the exact one is a very small number is no error."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.computed import SINGLE


def test_a_gate_far_below_zero_gives_zero_in_float32() -> None:
    """exp(220) is beyond float32, so torch's silu is 0 there; silu(-88.8) is 0 too, where the exact one is 3e-37."""
    gate = torch.tensor([[-220.0, -100.0, -90.0, -88.8, 1.0]])
    up = torch.tensor([[3.0, 1e3, 50.0, 20.0, 2.0]])
    computed = gated(gate, up, KNOWN["silu"], SINGLE)
    error = (torch.nn.functional.silu(gate) * up).double() - computed.exact_TN
    assert bool((error.abs() <= 3 * computed.variance_TN.sqrt()).all())
