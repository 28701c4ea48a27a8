"""A linear's bias as a step of its own: one row of the product, and what the engine makes of it with the bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptq_diff.numerics.magnitude import Magnitude, magnitude

RUNS_ON_A_GPU = 16
RUNS_ON_A_CPU = 2


class BiasStep(NamedTuple):
    """Copies with their figures; does not depend on the prompt, so an engine may hand the same one on with each.

    product_RN: one row of the product, or `spread` of several runs of it. with_bias_1N: that row with the bias.
    product, with_bias: their magnitudes.
    """

    layer: str
    product_RN: torch.Tensor
    with_bias_1N: torch.Tensor
    product: Magnitude
    with_bias: Magnitude


def bias_step(layer: str, product_RN: torch.Tensor, with_bias_1N: torch.Tensor) -> BiasStep:
    """Copies both to main memory, contiguous; on a GPU this waits for it."""
    product_RN = product_RN.clone(memory_format=torch.contiguous_format).cpu()
    with_bias_1N = with_bias_1N.clone(memory_format=torch.contiguous_format).cpu()
    return BiasStep(layer, product_RN, with_bias_1N, magnitude(product_RN), magnitude(with_bias_1N))


def runs_for(x: torch.Tensor) -> int:
    """How often a kernel is run anew for its bias: on a GPU slices of K are added in any order, some of them seldom."""
    return RUNS_ON_A_GPU if x.is_cuda else RUNS_ON_A_CPU


def spread(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """[3, N] of runs [1, N]: each column's median (the lower of two), smallest and largest value; NaN where one is.

    The median, since what one run in a hundred does is no bias.
    """
    values_RN = torch.cat(list(runs))
    return torch.stack((values_RN.median(dim=0).values, values_RN.amin(dim=0), values_RN.amax(dim=0)))
