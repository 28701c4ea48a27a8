"""A linear's bias as a step of its own: one row of the product, and what the engine makes of it with the bias."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptq_diff.numerics.magnitude import Magnitude, magnitude


class BiasStep(NamedTuple):
    """Copies with their figures; does not depend on the prompt, so an engine may hand the same one on with each.

    product_RN: one row of the product, as often as it was run. with_bias_1N: that row with the bias.
    product, with_bias: their magnitudes.
    """

    layer: str
    product_RN: torch.Tensor
    with_bias_1N: torch.Tensor
    product: Magnitude
    with_bias: Magnitude


def bias_step(layer: str, product_RN: torch.Tensor, with_bias_1N: torch.Tensor) -> BiasStep:
    """Copies both, contiguous; on a GPU this waits for it."""
    product_RN = product_RN.clone(memory_format=torch.contiguous_format)
    with_bias_1N = with_bias_1N.clone(memory_format=torch.contiguous_format)
    return BiasStep(layer, product_RN, with_bias_1N, magnitude(product_RN), magnitude(with_bias_1N))
