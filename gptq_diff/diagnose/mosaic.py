"""Columns that went wrong in different ways: each is explained for itself, by what explains others where that helps.

The search applies a hypothesis to all columns that it improves, and so may spoil those that another one is to blame
for. Here every column keeps the simplest of the states that explain it. What explains some columns is then put on those
that none explains, and they are searched anew beneath it: where two faults overlap, each is seen alone elsewhere.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.hypotheses import Variant
from gptq_diff.diagnose.mixing import blocks_of, in_some_rows
from gptq_diff.diagnose.parts import Parts
from gptq_diff.diagnose.search import FEW_ROWS, Search
from gptq_diff.diagnose.state import Applied, State

EXPLAINED = 4.0
"""Times the squared rounding that may be left of a column that is explained by itself."""
PARTS = {FEW_ROWS: 0.25, 4: 0.01, 2: 1e-4}
"""Rows -> the share of its squared error that may be left of it: with few rows something soon fits."""
FEWEST_ROWS = min(PARTS)
"""Rows with which a column can be explained by itself at all."""
MOST_PIECES = 6
"""States that the columns are shared out to."""
MOST_PATTERNS = 2
"""Ways in which columns took one state that others are offered."""


Pattern = tuple[Variant, ...]
"""What columns have taken, as variants that hold in whole columns."""


def mosaic(search: Search, states: Sequence[State]) -> State | None:
    """A state that takes every bad column from the state that explains it; None where that is no explanation.

    states: all that the search has found. Its pieces are those of the columns as they should be: it can be told of, not
    searched on.
    """
    if len(search.case.rows_M) < FEWEST_ROWS:
        return None
    rest_C = search.start.error2_C > FACTOR**2 * search.start.floor2_C
    shared = _shared_out(search, states, rest_C)
    if not shared:
        return None
    error2_C, floor2_C = search.start.error2_C.clone(), search.start.floor2_C.clone()
    applied: list[Applied] = []
    for state, mask_C in shared:
        rest_C = rest_C & ~mask_C
        error2_C[mask_C], floor2_C[mask_C] = state.error2_C[mask_C], state.floor2_C[mask_C]
        applied += [a.in_columns(mask_C) for a in state.applied if bool((a.which_BC[:, mask_C] >= 0).any())]
    if bool(rest_C.any()):
        under = searched_beneath(search, [(), *patterns_of(shared)], rest_C)
        if under is not None:
            error2_C[rest_C], floor2_C[rest_C] = under[1].error2_C, under[1].floor2_C
            applied += under[1].applied
        else:  # what explains others may leave little of them, though more than rounding
            for state, _ in shared:
                better_C = rest_C & (state.error2_C / state.floor2_C < error2_C / floor2_C)
                error2_C[better_C], floor2_C[better_C] = state.error2_C[better_C], state.floor2_C[better_C]
    whole = State(search.start.parts, (), tuple(applied), error2_C, floor2_C)
    return whole if search.suffices(whole) else None


def mostly(search: Search, states: Sequence[State]) -> tuple[State, torch.Tensor]:
    """The state that explains most of the bad columns, and these (bool [C])."""
    bad_C = search.start.bad_C
    if len(search.case.rows_M) < FEW_ROWS:
        return search.start, torch.zeros_like(bad_C)
    taken = _most(search, [state for state in states if state is not search.start and state.applied], bad_C)
    return (search.start, torch.zeros_like(bad_C)) if taken is None else taken


def _explained(search: Search, state: State) -> torch.Tensor:
    """Columns (bool [C]) of which the state leaves rounding."""
    part = next(part for rows, part in PARTS.items() if len(search.case.rows_M) >= rows)
    return (state.error2_C <= EXPLAINED * state.floor2_C) & (state.error2_C <= part * search.start.error2_C)


def _shared_out(
    search: Search, states: Sequence[State], bad_C: torch.Tensor
) -> list[tuple[State, torch.Tensor]]:  # fmt: skip
    """(state, the bad columns that it explains and none before it did), the simplest and the one with most first.

    What explains some columns is offered to the others as it is, alone and together, before anything else is.
    """
    offered = [state for state in states if state.applied]
    if len(search.case.rows_M) < FEW_ROWS:  # the search has not let columns choose
        offered += search.singles()
    shared: list[tuple[State, torch.Tensor]] = []
    left_C = bad_C
    for _ in range(MOST_PIECES):
        known = [s for given in _together(patterns_of(shared)) if (s := search.with_all(given)) is not None]
        taken = _most(search, known, left_C) or _most(search, offered, left_C)
        if taken is None:
            break
        shared.append(taken)
        left_C = left_C & ~taken[1]
    return shared


def _most(search: Search, states: Sequence[State], left_C: torch.Tensor) -> tuple[State, torch.Tensor] | None:
    """The state that explains most of these columns for each hypothesis in it; None where none explains any."""
    masks = ((state, _explained(search, state) & left_C) for state in states)
    best = max(masks, key=lambda one: (int(one[1].sum()) / len(one[0].applied), -one[0].left), default=None)
    return best if best is not None and bool(best[1].any()) else None


def _together(patterns: Sequence[Pattern]) -> list[Pattern]:
    """Each of them, and every two of them that have no family in common."""
    pairs = [
        (*a, *b)
        for a, b in itertools.combinations(patterns, 2)
        if {v.family for v in a}.isdisjoint(v.family for v in b)
    ]
    return [*patterns, *pairs]


def searched_beneath(
    search: Search, patterns: Sequence[Pattern], rest_C: torch.Tensor
) -> tuple[Search, State] | None:  # fmt: skip
    """The rest searched beneath each of these, and that search; None where nothing explains them."""
    found: list[tuple[Search, State]] = []
    for given in patterns:
        columns = search.columns[rest_C]
        inner = Search(search.case.of_columns(columns), columns, given)
        state = inner.run()[0]
        if state.explains and len(state.applied) > len(given):
            found.append((inner, state))
    return min(found, key=lambda one: one[1].left, default=None)


def patterns_of(shared: Sequence[tuple[State, torch.Tensor]]) -> list[Pattern]:
    """What the columns took, the most frequent ways of each state."""
    found: dict[tuple[object, ...], Pattern] = {}
    for state, mask_C in shared:
        columns = torch.nonzero(mask_C).flatten().tolist()
        seen = Counter(tuple(tuple(a.which_BC[:, c].tolist()) for a in state.applied) for c in columns)
        for way, _ in seen.most_common(MOST_PATTERNS):
            taken = [(a, which) for a, which in zip(state.applied, way) if max(which) >= 0]
            key = tuple((a.variant.family, which) for a, which in taken)
            found.setdefault(key, tuple(in_blocks(a, which) for a, which in taken))
    return list(found.values())


def in_blocks(applied: Applied, which: tuple[int, ...]) -> Variant:
    """One column's choice as a variant: which[b] is the number of the variant that block b took, -1 for none."""
    if applied.blocks is None:
        return applied.variants[which[0]]
    used = sorted({i for i in which if i >= 0})
    first = applied.variants[used[0]]
    which_B = torch.tensor(which)

    def change(parts: Parts, columns: torch.Tensor) -> Parts | None:
        block_K = blocks_of(parts, first.scope)
        mixed = parts
        for i in used:
            own = applied.variants[i].change
            wrong = own(parts, columns) if own is not None else None
            if wrong is None:
                return None
            rows_K1 = (which_B == i)[block_K][:, None]
            mixed = in_some_rows(mixed, wrong, rows_K1.expand(parts.codes_KC.shape))
        return mixed

    return replace(first, change=change, scope="")
