"""Delta debugging: the smallest part of a list that still fails.

A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002, section 3 (ddmin).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[list[T]], bool], most: int = 2000) -> list[T]:
    """A part of `items`, in their order, that fails and from which nothing more can be taken.

    fails: is true for all items. most: calls of `fails`; when they are used up, what has been reached is returned.
    """
    kept, parts, calls = list(items), 2, 0
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        chunks = [kept[i : i + size] for i in range(0, len(kept), size)]
        complements = [] if len(chunks) == 2 else [[i for c in chunks if c is not chunk for i in c] for chunk in chunks]
        for which, candidate in enumerate([*chunks, *complements]):
            if calls >= most:
                return kept
            calls += 1
            if fails(candidate):
                kept, parts = candidate, 2 if which < len(chunks) else max(len(chunks) - 1, 2)
                break
        else:
            if size == 1:
                return kept
            parts = min(len(kept), 2 * len(chunks))
    return kept


def shortest_prefix(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """By bisection, a prefix that fails where the one without its last item passes; `fails` is true for all items."""
    passes, failing = 0, len(items)
    while failing - passes > 1:
        middle = (passes + failing) // 2
        if fails(list(items[:middle])):
            failing = middle
        else:
            passes = middle
    return list(items[:failing])
