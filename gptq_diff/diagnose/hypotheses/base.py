"""What a hypothesis is: a way in which a product may have gone wrong, that can be computed and held against y."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.parts import Parts

Change = Callable[[Parts, torch.Tensor], "Parts | None"]
"""From the pieces of some columns (and their numbers, int64 [C]) to the wrong ones; None where it cannot apply."""
OnWeight = Callable[[torch.Tensor], torch.Tensor]
"""From the weight that the pieces make, float32 [K, C], to what was multiplied by."""
After = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the product as computed, unscaled [M, C] (and the columns' numbers), to what became of it."""


@dataclass(frozen=True)
class Variant:
    """One way of going wrong.

    family: variants of one family may meet in one product (a zero point up here, down there). cause: contract.md.
    says: "..., as if <says>". change: what it does to the pieces; None for nothing. on_weight: what it does to the
    weight that they make. after: what it does to the result.
    scope: "groups" or "slices" (of 128 rows of K) where it may be so in some of them only; "" where it is whole or not
    at all. in_columns: it may be so in some columns only. on_dense: it makes sense for dense pieces too.
    looser: what it leaves unexplained at best, as a factor on the squared rounding error.
    hides: of outputs as captured [M, C], which (bool) do not tell how large the product was.
    evident: the outputs alone show it, so that it is tried with others even where it explains little by itself.
    """

    family: str
    cause: str
    says: str
    change: Change | None = None
    on_weight: OnWeight | None = None
    after: After | None = None
    scope: str = ""
    in_columns: bool = True
    on_dense: bool = False
    looser: float = 1.0
    hides: Callable[[torch.Tensor], torch.Tensor] | None = None
    evident: bool = False


Maker = Callable[[Case], Iterator[Variant]]
"""The variants that make sense for a call."""
MAKERS: list[Maker] = []


def hypothesis(maker: Maker) -> Maker:
    """Enter a family into the list that `explain` goes through; the order is that of the files' names."""
    MAKERS.append(maker)
    return maker
