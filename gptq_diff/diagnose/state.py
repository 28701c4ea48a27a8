"""A state of the search: the pieces of the sampled columns with some hypotheses applied, and the error that is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.case import bad_or_all
from gptq_diff.diagnose.hypotheses import Variant
from gptq_diff.diagnose.parts import Parts

FAR = 10.0
"""Times the threshold that sets gross errors apart from mild ones in other columns."""


@dataclass(frozen=True)
class Applied:
    """One hypothesis in a state.

    variant: the first of its family that was used. says: all that were used, in words. columns: how many of the
    sampled ones. blocks: groups or slices, ascending; None for all. variants: those that columns chose from;
    which_BC: int64 [B, C], what each column took in each block (B is 1 where blocks is None), -1 for nothing.
    """

    variant: Variant
    says: str
    columns: int
    blocks: tuple[int, ...] | None
    variants: tuple[Variant, ...]
    which_BC: torch.Tensor

    def in_columns(self, mask_C: torch.Tensor) -> Applied:
        """The same as these columns have it: the variants that they took, and where."""
        which_BC = torch.where(mask_C, self.which_BC, -1)
        taken_C = which_BC.max(dim=0).values
        used = sorted({int(i) for i in taken_C.tolist() if i >= 0}, key=lambda i: -int((taken_C == i).sum()))
        says = "; elsewhere ".join(list(dict.fromkeys(self.variants[i].says for i in used))[:2])
        blocks = tuple(torch.nonzero((which_BC >= 0).any(dim=1)).flatten().tolist())
        return replace(
            self, variant=self.variants[used[0] if used else 0], says=says, columns=int((taken_C >= 0).sum()),
            blocks=None if self.blocks is None else blocks,
        )  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What was done to the weight or to the finished product, and in which columns (bool [C])."""

    variant: Variant
    mask_C: torch.Tensor


@dataclass(frozen=True)
class State:
    """Pieces of the sampled columns with some hypotheses applied.

    after: what is done to the weight that the pieces make, and to the product, in this order each.
    error2_C, floor2_C: float64, squared error and what rounding explains of it.
    """

    parts: Parts
    after: tuple[Done, ...]
    applied: tuple[Applied, ...]
    error2_C: torch.Tensor
    floor2_C: torch.Tensor

    def weight(self) -> torch.Tensor:
        """What x is multiplied by, float32 [K, C]."""
        return weight_of(self.parts, self.after)

    @property
    def left(self) -> float:
        """Error over expected rounding, root mean square over the columns."""
        return float((self.error2_C / self.floor2_C).mean().sqrt())

    @property
    def bad_C(self) -> torch.Tensor:  # noqa: N802
        """Columns that err beyond rounding, or all of them where none stands out, bool [C]."""
        return bad_or_all(self.error2_C > FACTOR**2 * self.floor2_C)

    @property
    def worst_C(self) -> torch.Tensor:  # noqa: N802
        """Columns that err far beyond rounding, bool [C]."""
        return self.error2_C > (FAR * FACTOR) ** 2 * self.floor2_C

    @property
    def wrong(self) -> int:
        """How many of the columns err beyond rounding."""
        return int((self.error2_C > FACTOR**2 * self.floor2_C).sum())

    @property
    def explains(self) -> bool:
        """Whether what is left is rounding."""
        return self.left <= FACTOR


def is_done_after(variant: Variant) -> bool:
    """Whether it does something to the weight or the product, not to the pieces alone."""
    return variant.on_weight is not None or variant.after is not None


def weight_of(parts: Parts, after: tuple[Done, ...]) -> torch.Tensor:
    """float32 [K, C]: the weight that the pieces make, after what is done to it."""
    w_KC = parts.weight()
    for done in after:
        if done.variant.on_weight is not None:
            w_KC = torch.where(done.mask_C, done.variant.on_weight(w_KC), w_KC)
    return w_KC
