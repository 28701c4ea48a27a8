"""A figure with what is asked of it, and how it is timed: side by side, in rounds, by the median."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable

ROUNDS = 5


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    what: in words. value: median; unit: of value.
    least, most: what is required of the value, None for nothing. note: what it is to be seen beside.
    """

    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def required(self) -> str:
        """The requirement in words, "" for none."""
        if self.least is not None:
            return f">= {self.least:g}"
        return f"<= {self.most:g}" if self.most is not None else ""

    @property
    def verdict(self) -> str:
        """ "ok", or "MISSED" with the ratio of the value to what is required; "" where nothing is."""
        limit = self.least if self.least is not None else self.most
        if limit is None:
            return ""
        met = self.value >= limit if self.least is not None else self.value <= limit
        return "ok" if met else f"MISSED ({self.value / limit:.2f} of it)"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(variants: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Wall times of every variant, one a round, after a first call that is not counted.

    A round runs all variants one after another, so that what slows the machine for a while slows them all; each second
    round runs them backwards.
    """
    for work in variants.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    for number in range(rounds):
        order = list(variants) if number % 2 == 0 else list(reversed(variants))
        for name in order:
            times[name].append(seconds(variants[name]))
    return times


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times[name], times[base]))


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)
