"""One bisection: releases judged one by one, each trial kept, until the change is found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from packaging.version import Version

from gptq_diff.bisection.record import Record, Trial
from gptq_diff.bisection.search import Found, Judge, Verdict, search


class Watcher(Protocol):
    """Is told what goes on."""

    def begins(self, version: str) -> None:
        """That release is tried now."""

    def ended(self, trial: Trial, *, known: bool) -> None:
        """What came of it; known: in an earlier try."""


@dataclass(frozen=True)
class Bisected:
    """versions: from the good one to the bad one. trials: in the order tried, those of earlier tries first."""

    versions: tuple[str, ...]
    found: Found
    trials: tuple[Trial, ...]

    @property
    def repair(self) -> bool:
        """Whether the bad release is the older one, so that what was found is a repair."""
        return Version(self.versions[0]) > Version(self.versions[-1])


def bisect(versions: Sequence[str], judge: Judge, record: Record, watcher: Watcher) -> Bisected:
    """Search; what the record knows already is not tried again."""
    known = record.known
    for trial in record.trials:
        watcher.ended(trial, known=True)

    def watched(version: str) -> Verdict:
        watcher.begins(version)
        started = time.monotonic()
        verdict = judge(version)
        trial = Trial(version, verdict, round(time.monotonic() - started, 1))
        record.add(trial)
        watcher.ended(trial, known=False)
        return verdict

    found = search(versions, watched, known)
    return Bisected(tuple(versions), found, tuple(record.trials))
