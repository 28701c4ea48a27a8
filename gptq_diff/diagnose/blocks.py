"""Which groups (or slices) of K went wrong, and in which way, from what each would do to y.

What a change does to y is the sum of what it does in every block of K alone, so blocks can be chosen one after another
and chosen again in the light of the others (coordinate descent), without computing a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_BLOCKS = 12
"""Blocks that are picked one after another, the one that explains most first."""
SWEEPS = 3
"""Times that every block chooses again."""
PROMISING = 0.2
"""Share of the squared error that all blocks together, each alone, must be able to explain."""
HOPEFUL = 0.8
"""Share of it that the first few blocks may leave for all to be tried."""
MOST_SOLVED = 512
"""Blocks times variants that least squares solves for together."""
RIDGE = 1e-9
"""Of the trace of the normal equations: added to their diagonal, so that blocks that do the same can be solved for."""
WORTH = 2.0
"""Squared expected roundings that a block must explain, on average over the columns."""


@dataclass(frozen=True)
class Choice:
    """which_BC: int64 [B, C], the variant that a block takes in a column, -1 for none. gap2_C: squared error left."""

    which_BC: torch.Tensor
    gap2_C: torch.Tensor

    @property
    def blocks(self) -> tuple[int, ...]:
        """Those in which anything is chosen."""
        return tuple(torch.nonzero((self.which_BC >= 0).any(dim=1)).flatten().tolist())


class BlockSearch:
    """gap_MC: float32, y - product. deltas: a variant each, float32 [B, M, C]. unit_C: what counts as one in a column.

    by_column: a column may choose its own variant, or none; else all take the same.
    """

    def __init__(
        self, gap_MC: torch.Tensor, deltas: list[torch.Tensor], unit_C: torch.Tensor, *, by_column: bool
    ) -> None:
        self.start_MC = gap_MC
        self.delta_VBMC = torch.stack(deltas)
        self.size2_VBC = self.delta_VBMC.square().sum(dim=2).double()
        self.unit_C = unit_C
        self.by_column = by_column
        self.blocks = self.delta_VBMC.shape[1]

    def run(self, enough: float) -> list[Choice]:
        """Choices by different ways; enough: mean of squared error over unit at which nothing more is looked for."""
        before = float((self.start_MC.square().sum(dim=0).double() / self.unit_C).mean())
        total_B, _ = self._gains(self.start_MC, range(self.blocks))
        promising = float(total_B.clamp_min(0.0).sum()) >= PROMISING * before
        found = [self._greedy(enough)] if promising else []
        after = self._mean(found[0]) if found else before
        if after > enough and self.blocks > 1:
            if promising and after < HOPEFUL * before:
                found.append(self._sweep(self._nothing()))
                found.append(self._sweep(self._whole()))
            solved_BC = self._solved() if self.by_column else self._solved_for_all()
            if bool((solved_BC >= 0).any()):
                found.append(self._sweep(solved_BC))
        found = [choice for choice in found if self._mean(choice) < before]
        return [self._agreed(choice) for choice in found] if self.by_column else found

    def _agreed(self, choice: Choice) -> Choice:
        """Columns that do better with what most columns take, block by block, take that: alone they can go astray."""
        which_BC = choice.which_BC.clone()
        for block in choice.blocks:
            taken = which_BC[block][which_BC[block] >= 0]
            which_BC[block] = torch.where(torch.tensor(2 * len(taken) > len(self.unit_C)), taken.mode().values, -1)
        gap_MC = self.start_MC.clone()
        for block in choice.blocks:
            gap_MC -= self._of(block, which_BC[block])
        gap2_C = gap_MC.square().sum(dim=0).double()
        better_C = gap2_C < choice.gap2_C
        return Choice(torch.where(better_C, which_BC, choice.which_BC), torch.minimum(gap2_C, choice.gap2_C))

    def _mean(self, choice: Choice) -> float:
        return float((choice.gap2_C / self.unit_C).mean())

    def _nothing(self) -> torch.Tensor:
        return torch.full((self.blocks, len(self.unit_C)), -1)

    def _whole(self) -> torch.Tensor:
        """Every block the variant that, alone and everywhere, leaves least."""
        total_VC = (self.start_MC - self.delta_VBMC.sum(dim=1)).square().sum(dim=1).double() / self.unit_C
        best = total_VC.argmin(dim=0) if self.by_column else total_VC.sum(dim=1).argmin().expand(len(self.unit_C))
        return best.expand(self.blocks, -1).clone()

    def _solved(self) -> torch.Tensor:
        """Every column one variant, in the blocks whose share in it least squares put nearer to all than to nothing.

        One block after another goes astray where what they do to y is alike, or where one undoes the other. Nothing
        where there are too few rows for it.
        """
        if len(self.start_MC) < 2 * self.blocks:
            return self._nothing()
        best_BC, best_C = self._nothing(), torch.full((len(self.unit_C),), float("inf"), dtype=torch.float64)
        for i, delta_BMC in enumerate(self.delta_VBMC):
            gram_CBB = torch.einsum("bmc,dmc->cbd", delta_BMC, delta_BMC).double()
            size_C = gram_CBB.diagonal(dim1=1, dim2=2).sum(dim=1)
            gram_CBB = gram_CBB + torch.diag_embed((self.unit_C + RIDGE * size_C)[:, None].expand(-1, self.blocks))
            with_gap_CB = torch.einsum("bmc,mc->cb", delta_BMC, self.start_MC).double()
            shares_CB = torch.linalg.solve(gram_CBB, with_gap_CB)
            taken_BC = (shares_CB > 0.5).T
            gap_MC = self.start_MC - torch.einsum("bmc,bc->mc", delta_BMC, taken_BC.float())
            gap2_C = gap_MC.square().sum(dim=0).double()
            better_C = gap2_C < best_C
            best_BC = torch.where(better_C, torch.where(taken_BC, i, -1), best_BC)
            best_C = torch.where(better_C, gap2_C, best_C)
        return best_BC

    def _solved_for_all(self) -> torch.Tensor:
        """Every block the variant whose share in it least squares over all columns put highest, and above a half.

        Nothing where there is too much to choose from.
        """
        variants = len(self.delta_VBMC)
        if variants * self.blocks > MOST_SOLVED:
            return self._nothing()
        delta_UMC = self.delta_VBMC.flatten(0, 1) / self.unit_C.sqrt().float()
        delta_UX, gap_X = delta_UMC.flatten(1).double(), (self.start_MC / self.unit_C.sqrt().float()).flatten().double()
        gram_UU = delta_UX @ delta_UX.T
        gram_UU = gram_UU + torch.eye(len(gram_UU)) * (RIDGE * gram_UU.trace() + 1.0)
        shares_VB = torch.linalg.solve(gram_UU, delta_UX @ gap_X).view(variants, self.blocks)
        share_B, which_B = shares_VB.max(dim=0)
        return torch.where(share_B > 0.5, which_B, -1)[:, None].expand(-1, len(self.unit_C)).clone()

    def _greedy(self, enough: float) -> Choice:
        which_BC = self._nothing()
        gap_MC = self.start_MC.clone()
        for _ in range(min(MOST_BLOCKS, self.blocks)):
            total_B, best_BC = self._gains(gap_MC, range(self.blocks))
            total_B[(which_BC >= 0).any(dim=1)] = 0.0
            block = int(total_B.argmax())
            if float(total_B[block]) <= WORTH:
                break
            which_BC[block] = best_BC[block]
            gap_MC = gap_MC - self._of(block, best_BC[block])
            gap_MC = self._choose_again(
                which_BC, gap_MC, [b for b in range(self.blocks) if bool((which_BC[b] >= 0).any())]
            )
            if float((gap_MC.square().sum(dim=0).double() / self.unit_C).mean()) <= enough:
                break
        return Choice(which_BC, gap_MC.square().sum(dim=0).double())

    def _sweep(self, which_BC: torch.Tensor) -> Choice:
        gap_MC = self.start_MC.clone()
        for block in range(self.blocks):
            gap_MC -= self._of(block, which_BC[block])
        for _ in range(SWEEPS):
            gap_MC = self._choose_again(which_BC, gap_MC, list(range(self.blocks)))
        return Choice(which_BC, gap_MC.square().sum(dim=0).double())

    def _choose_again(self, which_BC: torch.Tensor, gap_MC: torch.Tensor, blocks: list[int]) -> torch.Tensor:
        """Every block in turn, given the others; which_BC is changed, the new gap returned."""
        for block in blocks:
            without_MC = gap_MC + self._of(block, which_BC[block])
            total_B, best_BC = self._gains(without_MC, [block])
            chosen_C = best_BC[0] if float(total_B[0]) > WORTH else torch.full_like(which_BC[block], -1)
            which_BC[block] = chosen_C
            gap_MC = without_MC - self._of(block, chosen_C)
        return gap_MC

    def _of(self, block: int, which_C: torch.Tensor) -> torch.Tensor:
        """What the choice of one block does to y, [M, C]."""
        columns = torch.arange(len(which_C))
        delta_MC = self.delta_VBMC[which_C.clamp_min(0), block, :, columns].T
        return torch.where(which_C >= 0, delta_MC, 0.0)

    def _gains(self, gap_MC: torch.Tensor, blocks: range | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What each of these blocks can take away, mean over the columns in units ([B]), and by which variants."""
        at = list(blocks)
        with_gap = torch.einsum("vbmc,mc->vbc", self.delta_VBMC[:, at], gap_MC).double()
        gain_VBC = (2 * with_gap - self.size2_VBC[:, at]) / self.unit_C
        if self.by_column:
            best_BC, which_BC = gain_VBC.max(dim=0)
            return best_BC.clamp_min(0.0).mean(dim=1), torch.where(best_BC > 0, which_BC, -1)
        best_B, which_B = gain_VBC.mean(dim=2).max(dim=0)
        return best_B, torch.where(best_B > 0, which_B, -1)[:, None].expand(-1, gap_MC.shape[1])
