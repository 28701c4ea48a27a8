"""Where something changes along a row of numbers: told by labels that are equal or not, or by errors that part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

PART = 1.25
"""Errors on one side must be so many times those on the other."""
FEWEST = 2
"""Errors needed on either side: a single one may be large by chance."""


def runs(labels: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(first, last) of every stretch of equal neighbours."""
    found: list[tuple[int, int]] = []
    for i, label in enumerate(labels):
        if i and labels[i - 1] == label:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def single_border(labels: Sequence[Hashable]) -> int | None:
    """The last place before the one border; None where there is none, or more than one."""
    found = runs(labels)
    return found[0][1] if len(found) == 2 else None


def error_border(errors: Sequence[float]) -> int | None:
    """The last place before the errors part: all on one side are PART times all on the other, or more.

    Where several places do, the one with the largest ratio. None where none does.
    """
    best, border = PART, None
    for i in range(FEWEST, len(errors) - FEWEST + 1):
        left, right = errors[:i], errors[i:]
        for low, high in ((left, right), (right, left)):
            ratio = min(high) / max(max(low), 1e-30)
            if ratio >= best:
                best, border = ratio, i - 1
    return border
