"""What is done to a finished product: a bias that does not belong there, or values cut off."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis

BORDERLINE = 24.0
"""Factor on the squared rounding that outputs on the border between two bfloat16 values cost: of halves that err by
3e-4 one in 25 goes the other way, by a step of 2^-8 to 2^-7."""
OFTEN = 4
"""Outputs of one and the same largest magnitude that are no chance."""
FEWEST_OF_COLUMN = 8
"""Outputs of a column from which it is told apart by their bits."""
FEWEST = 24
"""Outputs from which their bits are evidence: of halves one in eight is a bfloat16 by chance."""


def suspect_outputs(case: Case) -> torch.Tensor:
    """The finite outputs of the suspect columns, float32, in one dimension, but for those that may be cut off."""
    size_MN = case.y_MN.abs()
    return case.y_MN[case.known_MN & case.suspects & (size_MN < size_MN.max())]


def are_bfloat16(values: torch.Tensor) -> bool:
    """Whether all of these float32 values, and enough of them, are such as bfloat16 holds."""
    values = values[values.abs() >= 2.0**-14]  # half subnormals have fewer bits of their own
    return values.numel() >= FEWEST and torch.equal(values.to(torch.bfloat16).float(), values)


def brain_columns(case: Case) -> torch.Tensor:
    """Suspect columns, bool [N], of which all outputs that tell it, and enough of them, are such as bfloat16 holds."""
    size_MN = case.y_MN.abs()
    told_MN = case.known_MN & (size_MN < size_MN.max()) & (size_MN >= 2.0**-14)
    are_N = ((case.y_MN.to(torch.bfloat16).float() == case.y_MN) | ~told_MN).all(dim=0)
    return are_N & case.suspects & (told_MN.sum(dim=0) >= FEWEST_OF_COLUMN)


@hypothesis
def stray_bias(case: Case) -> Iterator[Variant]:
    """The product is captured before the bias is added: none belongs in it."""
    source = case.source
    bias_N = source.own.linear.bias
    if bias_N is None or not bool((bias_N != 0).any()):
        return
    known_N = bias_N.float()
    for sign, says in ((1.0, "the bias had been added twice"), (-1.0, "the bias had been taken away once")):

        def moved(y_MC: torch.Tensor, columns: torch.Tensor, sign: float = sign) -> torch.Tensor:
            return y_MC + sign * known_N[columns]

        yield Variant("bias", "bias", says, after=moved, in_columns=False)


@hypothesis
def cut_off(case: Case) -> Iterator[Variant]:
    """Values beyond some magnitude cut off there: the largest that y has; right ones, or wrong ones, many at once."""
    limit = float(case.y_MN.abs().max())
    beyond_MN = (case.exact_MN.abs() > limit * (1 + 2.0**-8)) & case.known_MN
    often = int(((case.y_MN.abs() >= limit) & case.known_MN).sum()) >= OFTEN
    if limit <= 0:
        return

    def clamped(y_MC: torch.Tensor, _columns: torch.Tensor) -> torch.Tensor:
        return y_MC.clamp(-limit, limit)

    def at_limit(y_MC: torch.Tensor) -> torch.Tensor:
        return y_MC.abs() >= limit

    evident = often or bool(beyond_MN.any())
    says = f"values beyond {limit:,.4g} had been cut off"
    yield Variant("clamp", "clamp", says, after=clamped, in_columns=False, hides=at_limit, evident=evident)


@hypothesis
def bfloat16_result(case: Case) -> Iterator[Variant]:
    """All outputs of columns that err are values that bfloat16 holds; such columns among them, where not all are so."""
    values, brain_N = suspect_outputs(case), case.suspects
    alone = not are_bfloat16(values)
    if alone:
        brain_N = brain_columns(case)
        values = case.y_MN[case.known_MN & brain_N & (case.y_MN.abs() < case.y_MN.abs().max())]
        if not are_bfloat16(values):
            return

    def rounded(y_MC: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        brain_MC = y_MC.to(torch.bfloat16).float()
        return torch.where(brain_N[columns], brain_MC, y_MC) if alone else brain_MC

    says = f"the result had been rounded to bfloat16 (all {values.numel():,} outputs looked at are such values)"
    yield Variant("bfloat16-result", "dtype", says, after=rounded, looser=BORDERLINE)
