"""Finding the hypotheses that reproduce a wrong product: alone, in part of it, or several at once.

A beam search. A state is the pieces of the product (for a sample of columns) with some hypotheses applied, and the
error that is left; from each the variants of one more family are tried, as a whole, in the groups or slices that they
explain, and column by column. It ends when what is left is rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.blocks import BlockSearch, Choice
from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses import MAKERS, Variant
from gptq_diff.diagnose.mixing import blocks_of, in_some_columns, in_some_rows
from gptq_diff.diagnose.parts import Parts
from gptq_diff.diagnose.state import Applied, Done, State, is_done_after, weight_of

BEAM, BEAM_OF_FEW = 4, 2
"""States that are followed at a time: those that leave least, and those that leave fewest columns wrong."""
DEPTH = 3
"""Hypotheses that may hold at once."""
HELPS = 0.5
"""A column takes a variant that leaves at most this share of its squared error."""
ENOUGH = 0.75
"""Share of the squared error that an explanation must explain."""
ENOUGH_LOOSE = 0.2
"""The same with a variant that leaves more than rounding, and stands on other evidence besides."""
GOES_ON = 1.6
"""Times the expected rounding below which nothing more is looked for."""
PAIR_COLUMNS, PAIR_VARIANTS, PAIR_OUTPUTS = 12, 10, 32
"""Columns that pairs of hypotheses are tried in, the most variants that a family may have for it, and the fewest wrong
outputs: some pair among hundreds fits a few."""
MENDS = 0.5
"""One that leaves at most this share of the bad columns is followed too, however much it leaves in a few others."""
EVENLY = 1e-2
"""Of its squared error that counts as one in a column, where all bad columns are to count alike."""
FEW_ROWS = 8
"""Rows from which a column may choose for itself: with fewer, something always fits."""
MANY_ROWS, SEEN = 16, 2.0
"""Rows from which a column that errs so many times the expected rounding does not do so by chance."""
FEW_VARIANTS = 2
"""With fewer rows a column may still choose between so many."""


class Search:
    """The search over one case; columns: int64 [C], the sample looked at; given: what holds everywhere already."""

    def __init__(self, case: Case, columns: torch.Tensor, given: Sequence[Variant] = ()) -> None:
        self.case = case
        self.columns = columns
        self._given = len(given)
        self.families = _families(case)
        self.tried = 0
        self.start = self._state(case.source.parts(case.x_MK, columns), (), ())
        started = self.with_all(given)
        assert started is not None, "it was applied before"
        self.start = started

    def run(self) -> list[State]:
        """States from best to worst of the first depth at which any explains y; else the best that was found."""
        beam, best = [self.start, *self._evident()], [self.start]
        for _ in range(DEPTH):
            found = [state for at in beam for state in self._expand(at)]
            if not found:
                break
            found.sort(key=_rank)
            best = sorted([*found, *best], key=_rank)
            beam = _distinct(found)[:BEAM]
            few = _distinct(sorted(found, key=lambda state: (state.wrong, *_rank(state))))[:BEAM_OF_FEW]
            beam += [state for state in few if all(state is not other for other in beam)]
            if best[0].explains and best[0].left <= GOES_ON:
                break
        return best

    def paired(self) -> State | None:
        """Two hypotheses that hold everywhere and each make matters no better without the other; None where none do.

        Found in a few columns first; families with many variants are left out.
        """
        bad = self.columns[self.start.bad_C]
        if len(bad) * len(self.case.rows_M) < PAIR_OUTPUTS:
            return None
        few = Search(self.case, bad[:: max(1, -(-len(bad) // PAIR_COLUMNS))])
        wholes = [v for family in self.families.values() if len(family) <= PAIR_VARIANTS for v in family]
        pairs = [(a, b) for a, b in itertools.combinations(wholes, 2) if a.family != b.family]
        self.tried += len(pairs)
        found = [(state.left, pair) for pair in pairs if (state := few.with_all(pair)) is not None and state.explains]
        for _, pair in sorted(found, key=lambda one: one[0])[:BEAM]:
            state = self.with_all(pair)
            if state is not None and self.suffices(state):
                return state
        return None

    def singles(self) -> list[State]:
        """Every variant that may hold in some columns, alone and in all of them."""
        variants = [v for family in self.families.values() for v in family if v.in_columns]
        return [state for v in variants if (state := self.with_all((v,))) is not None]

    def with_all(self, variants: Sequence[Variant]) -> State | None:
        """The start with these applied everywhere, one after the other; None where one cannot be."""
        state: State | None = self.start
        everywhere = torch.ones(len(self.columns), dtype=torch.bool)
        for variant in variants:
            if state is not None:
                state = self._in_columns(state, variant, everywhere)
        return state

    def whole(self, state: State) -> tuple[Variant, ...] | None:
        """The state's hypotheses where all of them hold in all groups and columns; else None."""
        partial = any(a.blocks is not None or a.columns < len(self.columns) for a in state.applied)
        return None if partial or state.parts.dense else tuple(a.variant for a in state.applied)

    def worse_columns(self, variants: Sequence[Variant], columns: torch.Tensor) -> torch.Tensor:
        """int64: of these columns those in which more than rounding is left where the variants hold everywhere."""
        other = Search(self.case, columns, variants)
        return columns[self.worse(other.start)]

    def worse(self, state: State) -> torch.Tensor:
        """Columns (bool [C]) in which the state leaves more than rounding; where none stands out, less will do."""
        plainly_C = state.error2_C > FACTOR**2 * state.floor2_C
        if bool(plainly_C.any()) or len(self.case.rows_M) < MANY_ROWS:
            return plainly_C
        return state.error2_C > SEEN**2 * state.floor2_C

    def share(self, state: State) -> float:
        """Share of the squared error that the state explains of the columns that err, each in units of its rounding."""
        return 1.0 - self._raw(state, self.start.bad_C) / max(self._raw(self.start, self.start.bad_C), 1e-300)

    def suffices(self, state: State) -> bool:
        """Whether the state is an explanation: what is left is rounding, and it is little beside what there was.

        Of one that leaves more than rounding by its nature the outputs' bits are the proof, not what it leaves.
        """
        new = state.applied[self._given :]
        loose = [a for a in state.applied if a.variant.looser > 1.0]
        if new == tuple(loose) and len(new) == 1:
            return state.explains
        return bool(state.applied) and state.explains and self.share(state) >= (ENOUGH_LOOSE if loose else ENOUGH)

    def _raw(self, state: State, columns_C: torch.Tensor | None = None) -> float:
        """Squared error (of those columns) in units of the rounding of the product as it should be."""
        raw_C = state.error2_C / self.start.floor2_C
        return float((raw_C if columns_C is None else raw_C[columns_C]).sum())

    def _state(self, parts: Parts, after: tuple[Done, ...], applied: tuple[Applied, ...]) -> State:
        w_KC = weight_of(parts, after)
        y_MC = self._finished(parts.x_MK @ w_KC, after)
        error2_C = self.case.error2(y_MC, self.columns)
        floor2_C = self.case.floor2(y_MC, w_KC, parts.x_MK)
        for done in after:
            floor2_C = torch.where(done.mask_C, floor2_C * done.variant.looser, floor2_C)
        return State(parts, after, applied, error2_C, floor2_C)

    def _finished(self, y_MC: torch.Tensor, after: tuple[Done, ...]) -> torch.Tensor:
        """What was done to the product."""
        for done in after:
            if done.variant.after is not None:
                y_MC = torch.where(done.mask_C, done.variant.after(y_MC, self.columns), y_MC)
        return y_MC

    def _evident(self) -> list[State]:
        """What the outputs alone show, applied first; alone it must explain as much as anything else."""
        everywhere = torch.ones(len(self.columns), dtype=torch.bool)
        shown = [v for variants in self.families.values() for v in variants if v.evident]
        return [state for v in shown if (state := self._in_columns(self.start, v, everywhere)) is not None]

    def _expand(self, at: State) -> list[State]:
        """One more family each; only states that leave clearly less than `at` does."""
        used = {a.variant.family for a in at.applied}
        found = []
        for family, variants in self.families.items():
            if family in used:
                continue
            states = self._of_family(at, variants)
            found += [
                s for s in states if self._raw(s) < _helpful(s) * self._raw(at) or s.wrong <= MENDS * at.wrong - 0.5
            ]
        return found

    def _of_family(self, at: State, variants: Sequence[Variant]) -> list[State]:
        """The family as a whole, in the columns that err, in some groups, and column by column."""
        everywhere = torch.ones(len(self.columns), dtype=torch.bool)
        wholes = [(v, state) for v in variants if (state := self._in_columns(at, v, everywhere)) is not None]
        self.tried += len(wholes)
        found = [state for _, state in wholes]
        local = [(v, s) for v, s in wholes if v.in_columns]
        for mask_C in _chosen_columns(at):
            for variant, whole in local:
                state = self._in_columns(at, variant, mask_C, whole)
                found += [] if state is None else [state]
        may_choose = len(self.case.rows_M) >= FEW_ROWS
        if may_choose and local:
            found.append(self._by_column(at, local))
        blockwise = [(v, s) for v, s in wholes if v.scope]
        if blockwise:
            found += self._by_block(at, blockwise, by_column=may_choose or len(blockwise) <= FEW_VARIANTS)
        return found

    def _in_columns(
        self, at: State, variant: Variant, mask_C: torch.Tensor, whole: State | None = None
    ) -> State | None:
        """The variant in the columns of the mask; whole: its state in all of them, if that is known."""
        parts = at.parts
        if variant.change is not None:
            if parts.dense and not variant.on_dense:
                return None
            changed = variant.change(parts, self.columns) if whole is None else whole.parts
            if changed is None:
                return None
            parts = changed if bool(mask_C.all()) else in_some_columns(parts, changed, mask_C)
        after = (*at.after, Done(variant, mask_C)) if is_done_after(variant) else at.after
        which_BC = torch.where(mask_C, 0, -1)[None]
        applied = Applied(variant, variant.says, int(mask_C.sum()), None, (variant,), which_BC)
        return self._state(parts, after, (*at.applied, applied))

    def _by_column(self, at: State, wholes: Sequence[tuple[Variant, State]]) -> State:
        """Every column takes the variant that fits it best, or none."""
        best_C = at.error2_C * HELPS
        taken_C = torch.full((len(self.columns),), -1)
        for i, (_, state) in enumerate(wholes):
            better_C = state.error2_C < best_C
            best_C = torch.where(better_C, state.error2_C, best_C)
            taken_C[better_C] = i
        parts, after = at.parts, at.after
        for i, (variant, state) in enumerate(wholes):
            mask_C = taken_C == i
            if not bool(mask_C.any()):
                continue
            parts = parts if variant.change is None else in_some_columns(parts, state.parts, mask_C)
            after = (*after, Done(variant, mask_C)) if is_done_after(variant) else after
        return self._state(parts, after, (*at.applied, _applied(wholes, taken_C[None], None)))

    def _by_block(self, at: State, wholes: Sequence[tuple[Variant, State]], *, by_column: bool) -> list[State]:
        """Variants in some groups (or slices) only; a column may choose its own."""
        blocks_K = blocks_of(at.parts, wholes[0][0].scope)
        before = at.weight()
        deltas = [self._deltas(state.weight() - before, at.parts, blocks_K) for _, state in wholes]
        known_MC = self._known(at)
        gap_MC = torch.where(known_MC, self._gap(at), 0.0)
        found: list[State] = []
        for own_choice in (True, False) if by_column else (False,):
            columns_C = torch.ones_like(at.bad_C) if own_choice else at.bad_C
            own = [torch.where(columns_C & known_MC, delta, 0.0) for delta in deltas]
            search = BlockSearch(gap_MC, own, self.start.floor2_C, by_column=own_choice)
            found += [self._chosen(at, wholes, c, blocks_K, columns_C) for c in search.run(GOES_ON)]
            if any(state.left <= GOES_ON for state in found):
                break
            if not own_choice:  # those that err most would choose for all: once more with all counted alike
                unit_C = torch.maximum(self.start.floor2_C, EVENLY * at.error2_C)
                search = BlockSearch(gap_MC, own, unit_C, by_column=False)
                found += [self._chosen(at, wholes, c, blocks_K, columns_C) for c in search.run(GOES_ON)]
        return found

    def _chosen(
        self, at: State, wholes: Sequence[tuple[Variant, State]], choice: Choice, blocks_K: torch.Tensor,
        columns_C: torch.Tensor,
    ) -> State:  # fmt: skip
        """The state in which those columns take that choice."""
        parts = at.parts
        for i, (_, whole) in enumerate(wholes):
            mask_KC = (choice.which_BC == i)[blocks_K] & columns_C
            if bool(mask_KC.any()):
                parts = in_some_rows(parts, whole.parts, mask_KC)
        which_BC = torch.where(columns_C, choice.which_BC, -1)
        return self._state(parts, at.after, (*at.applied, _applied(wholes, which_BC, choice.blocks)))

    def _known(self, at: State) -> torch.Tensor:
        """Which outputs (bool [M, C]) tell how large the product was; not those that were cut off."""
        known_MC = self.case.known_MN[:, self.columns]
        y_MC = self.case.y_MN[:, self.columns]
        for done in at.after:
            if done.variant.hides is not None:
                known_MC = known_MC & ~(done.variant.hides(y_MC) & done.mask_C)
        return known_MC

    def _gap(self, at: State) -> torch.Tensor:
        """float32 [M, C]: y - what the state makes of it, rows weighted."""
        product_MC = self._finished(at.parts.x_MK @ at.weight(), at.after)
        return (self.case.y_MN[:, self.columns] - product_MC) * self.case.weight_M.sqrt().float()[:, None]

    def _deltas(self, change_KC: torch.Tensor, parts: Parts, blocks_K: torch.Tensor) -> torch.Tensor:
        """float32 [B, M, C]: what the change does to y in every block alone, rows weighted."""
        x_MK = parts.x_MK * self.case.weight_M.sqrt().float()[:, None]
        rows = [torch.nonzero(blocks_K == b).flatten() for b in range(int(blocks_K.max()) + 1)]
        return torch.stack([x_MK[:, r] @ change_KC[r].nan_to_num(0.0, 0.0, 0.0) for r in rows])


def _chosen_columns(at: State) -> list[torch.Tensor]:
    """The columns that err, and those that err grossly, where these are others."""
    bad_C, worst_C = at.bad_C, at.worst_C
    found = [] if bool(bad_C.all()) else [bad_C]
    return [*found, worst_C] if bool(worst_C.any()) and not torch.equal(worst_C, bad_C) else found


def _helpful(state: State) -> float:
    """Share of the error that the last hypothesis may leave and still be followed."""
    return 1.0 - ENOUGH_LOOSE if state.applied[-1].variant.looser > 1.0 else ENOUGH


def _applied(
    wholes: Sequence[tuple[Variant, State]], which_BC: torch.Tensor, blocks: tuple[int, ...] | None
) -> Applied:
    variants = tuple(variant for variant, _ in wholes)
    everywhere = torch.ones(which_BC.shape[1], dtype=torch.bool)
    return Applied(variants[0], "", 0, blocks, variants, which_BC).in_columns(everywhere)


def _distinct(states: Sequence[State]) -> list[State]:
    """The first of those that apply the same families and leave the same: two ways to one and the same state."""
    seen: dict[tuple[object, ...], State] = {}
    for state in states:
        seen.setdefault((round(state.left, 4), *(a.variant.family for a in state.applied)), state)
    return list(seen.values())


def _families(case: Case) -> dict[str, list[Variant]]:
    families: dict[str, list[Variant]] = {}
    for maker in MAKERS:
        for variant in maker(case):
            families.setdefault(variant.family, []).append(variant)
    return families


def _rank(state: State) -> tuple[float, float]:
    """Fewer hypotheses where they explain as well; what is left decides, to within a tenth."""
    whole = sum(a.blocks is not None for a in state.applied)
    return (round(state.left * (1.0 + 0.08 * len(state.applied) + 0.04 * whole), 6), float(len(state.applied)))
