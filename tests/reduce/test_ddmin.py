from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

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


@given(st.integers(1, 24), st.data())
def test_of_any_culprits_a_smallest_set_is_left(count: int, data: st.DataObject) -> None:
    """Several sets of items, any of which fails wherever it is whole: one of them is left, in order, and no more."""
    sets = st.sets(st.integers(0, count - 1), min_size=1, max_size=5)
    culprits = data.draw(st.lists(sets, min_size=1, max_size=4))

    def fails(kept: list[int]) -> bool:
        return any(culprit <= set(kept) for culprit in culprits)

    kept = ddmin(range(count), fails)
    assert kept == sorted(set(kept))
    assert set(kept) in culprits
    assert not any(fails([i for i in kept if i != one]) for one in kept)


@given(st.lists(st.integers(-5, 9), min_size=1, max_size=40), st.integers(1, 30))
def test_a_prefix_that_fails_has_none_one_shorter_that_does(values: list[int], border: int) -> None:
    """Also where the sum goes up and down on the way: what is returned fails, and one item less passes."""

    def fails(kept: list[int]) -> bool:
        return sum(kept) >= border

    if not fails(values):
        return
    prefix = shortest_prefix(values, fails)
    assert prefix == values[: len(prefix)]
    assert fails(prefix)
    assert len(prefix) == 1 or not fails(prefix[:-1])
