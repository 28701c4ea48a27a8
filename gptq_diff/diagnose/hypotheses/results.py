"""What is done to a finished product: a bias that does not belong there, or values cut off."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Source


@hypothesis
def stray_bias(source: Source) -> Iterator[Variant]:
    """The product is captured before the bias is added: none belongs in it."""
    bias_N = source.own.linear.bias
    if bias_N is None or not bool((bias_N != 0).any()):
        return
    known_N = bias_N.float()
    for sign, says in ((1.0, "the bias had been added twice"), (-1.0, "the bias had been taken away once")):

        def moved(y_MC: torch.Tensor, columns: torch.Tensor, sign: float = sign) -> torch.Tensor:
            return y_MC + sign * known_N[columns]

        yield Variant("bias", "bias", says, after=moved, in_columns=False)
