from __future__ import annotations

from itertools import combinations

from gptq_diff.reduce.ddmin import ddmin, shortest_prefix


def test_the_culprits_are_found_wherever_they_are() -> None:
    """Every pair of 20 items, and only that pair, is left of a list that fails where both are in it."""
    for pair in combinations(range(20), 2):
        assert ddmin(range(20), lambda kept, pair=pair: set(pair) <= set(kept)) == list(pair)


def test_nothing_more_can_be_taken_away() -> None:
    """Where a sum has to pass a border, what is left passes it and no part with one item less does."""
    values = [(7 * i) % 11 for i in range(30)]
    kept = ddmin(range(30), lambda items: sum(values[i] for i in items) >= 60)
    total = sum(values[i] for i in kept)
    assert total >= 60
    assert all(total - values[i] < 60 for i in kept)


def test_a_limit_of_calls_gives_what_was_reached() -> None:
    calls = []

    def fails(kept: list[int]) -> bool:
        calls.append(kept)
        return {3, 90} <= set(kept)

    kept = ddmin(range(100), fails, most=5)
    assert len(calls) == 5
    assert {3, 90} <= set(kept)


def test_the_prefix_ends_where_it_begins_to_fail() -> None:
    for border in range(1, 33):
        assert shortest_prefix(range(32), lambda kept, border=border: len(kept) >= border) == list(range(border))
