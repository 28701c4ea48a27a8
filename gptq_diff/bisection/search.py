"""The search itself: halves what lies between a good and a bad release, around those that cannot be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

GOOD, BAD, UNJUDGED = "good", "bad", "cannot judge"


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one release.

    kind: GOOD, BAD or UNJUDGED. said: what was seen, or why nothing was, in words.
    """

    kind: str
    said: str


class Judge(Protocol):
    """Brings a release here and judges it."""

    def __call__(self, version: str) -> Verdict:
        """GOOD, BAD, or UNJUDGED with the reason: what fails with one release is no error."""


@dataclass(frozen=True)
class Found:
    """Where the verdict changes.

    last_good, first_bad: neighbours but for `between`, which could not be judged. nothing: why there is no change to be
    found, None where there is one. stuck: why the search could not even begin. At most one of the two is not None.
    """

    last_good: str | None = None
    first_bad: str | None = None
    between: tuple[str, ...] = ()
    nothing: str | None = None
    stuck: str | None = None


def search(versions: Sequence[str], judge: Judge, known: Mapping[str, Verdict]) -> Found:
    """Find the change in versions that lead from one that is good to one that is bad, both ends included.

    known: verdicts of an earlier try, taken as they are. The ends are judged first: where one of them cannot be, its
    neighbour takes its place, and so on inwards.
    """
    verdicts: dict[str, Verdict] = {}

    def kind(version: str) -> str:
        if version not in verdicts:
            verdicts[version] = known[version] if version in known else judge(version)
        return verdicts[version].kind

    low, high = 0, len(versions) - 1
    while kind(versions[low]) == UNJUDGED:
        low += 1
        if low == high:
            return Found(stuck=f"no release from {versions[0]} on could be judged before {versions[high]}")
    if kind(versions[low]) == BAD:
        return Found(nothing=_already(versions, low, BAD))
    while kind(versions[high]) == UNJUDGED:
        high -= 1
        if high == low:
            return Found(stuck=f"no release up to {versions[-1]} could be judged after {versions[low]}")
    if kind(versions[high]) == GOOD:
        return Found(nothing=_already(versions, high, GOOD))
    while True:
        left = [i for i in range(low + 1, high) if verdicts.get(versions[i], Verdict("", "")).kind != UNJUDGED]
        if not left:
            return Found(versions[low], versions[high], tuple(versions[low + 1 : high]))
        middle = min(left, key=lambda i: (abs(2 * i - low - high), i))
        found = kind(versions[middle])
        low, high = (middle if found == GOOD else low), (middle if found == BAD else high)


def _already(versions: Sequence[str], place: int, kind: str) -> str:
    end = versions[0] if kind == BAD else versions[-1]
    instead = "" if versions[place] == end else f" (in place of {end}, which could not be judged)"
    return f"{versions[place]} is {kind} already{instead}"
