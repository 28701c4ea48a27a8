"""The search: every place where the verdict can change, around every release that cannot be judged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Found, Verdict, search


class Judged:
    """A judge that knows the answers, and what it was asked."""

    def __init__(self, kinds: str) -> None:
        """kinds: a letter a version: g, b or u."""
        names = {"g": GOOD, "b": BAD, "u": UNJUDGED}
        self.versions = [f"{i}" for i in range(len(kinds))]
        self.answers = {version: names[letter] for version, letter in zip(self.versions, kinds, strict=True)}
        self.asked: list[str] = []

    def __call__(self, version: str) -> Verdict:
        self.asked.append(version)
        return Verdict(self.answers[version], "as made up")

    def search(self, known: Iterable[str] = ()) -> Found:
        return search(self.versions, self, {version: Verdict(self.answers[version], "before") for version in known})


def test_every_change_is_found_in_few_trials() -> None:
    """Of 64 releases: the ends, and six halvings."""
    for first_bad in range(1, 64):
        judged = Judged("g" * first_bad + "b" * (64 - first_bad))
        found = judged.search()
        assert (found.last_good, found.first_bad, found.between) == (str(first_bad - 1), str(first_bad), ())
        assert len(judged.asked) == len(set(judged.asked)) <= 8


def test_whatever_cannot_be_judged_is_walked_around() -> None:
    """All patterns of five releases between the ends: the two named are judged, and what lies between is not."""
    for first_bad in range(1, 7):
        for holes in itertools.product([False, True], repeat=5):
            letters = ["g" if i < first_bad else "b" for i in range(7)]
            for place, hole in enumerate(holes, start=1):
                letters[place] = "u" if hole else letters[place]
            judged = Judged("".join(letters))
            found = judged.search()
            assert found.last_good is not None and found.first_bad is not None
            assert judged.answers[found.last_good] == GOOD and judged.answers[found.first_bad] == BAD
            between = tuple(str(i) for i in range(int(found.last_good) + 1, int(found.first_bad)))
            assert found.between == between
            assert all(judged.answers[version] == UNJUDGED for version in between)
            assert int(found.last_good) < first_bad <= int(found.first_bad)


@given(st.text("gbu", min_size=2, max_size=30))
def test_it_ends_whatever_the_answers_are(kinds: str) -> None:
    """Also where good and bad alternate: what it names was judged so, and nothing is asked twice."""
    judged = Judged(kinds)
    found = judged.search()
    assert len(judged.asked) == len(set(judged.asked))
    if found.stuck is None and found.nothing is None:
        assert found.last_good is not None and found.first_bad is not None
        assert judged.answers[found.last_good] == GOOD and judged.answers[found.first_bad] == BAD
    else:
        assert (found.last_good, found.first_bad, found.between) == (None, None, ())


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("ggg", "2 is good already"),
        ("bbb", "0 is bad already"),
        ("bgb", "0 is bad already"),
        ("ubb", "1 is bad already (in place of 0, which could not be judged)"),
        ("ggu", "1 is good already (in place of 2, which could not be judged)"),
    ],
)
def test_where_nothing_changed_that_is_said(kinds: str, said: str) -> None:
    """One look at each end is enough."""
    judged = Judged(kinds)
    found = judged.search()
    assert found.nothing == said
    assert found.stuck is None


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("uub", "no release from 0 on could be judged before 2"),
        ("guu", "no release up to 2 could be judged after 0"),
        ("uu", "no release from 0 on could be judged before 1"),
    ],
)
def test_where_an_end_cannot_be_judged_at_all_the_search_is_stuck(kinds: str, said: str) -> None:
    """It says how far it looked."""
    assert Judged(kinds).search().stuck == said


def test_an_end_that_cannot_be_judged_gives_its_place_to_its_neighbour() -> None:
    """On both sides."""
    found = Judged("uggbbu").search()
    assert (found.last_good, found.first_bad) == ("2", "3")


def test_what_is_known_is_not_judged_again() -> None:
    """As after an interruption."""
    judged = Judged("ggggbbbb")
    first = judged.search()
    tried, judged.asked = list(judged.asked), []
    assert judged.search(known=tried) == first
    assert judged.asked == []
    judged.search(known=tried[:3])
    assert set(judged.asked) == set(tried[3:])
