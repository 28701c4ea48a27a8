"""The sum behind a lost output while it grows, for a picture: a few hundred numbers at most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gptq_diff.records import PartialSums

MOST = 200
"""Points of a long sum, besides its largest and smallest."""

Floats = npt.NDArray[np.float64]


def lane(says: str, row: int, column: int, channels: list[int], terms: Floats) -> PartialSums | None:
    """A chain of half multiply-adds from +0, each rounded to float16. terms: the unrounded products."""
    return _told(says, row, column, np.array(channels), np.cumsum(terms), _rounded_chain(terms))


def accumulator(says: str, row: int, column: int, products: Floats, step: int) -> PartialSums | None:
    """A half accumulator that takes `step` products of consecutive rows of K at a time."""
    starts = np.arange(0, len(products), step)
    terms = np.add.reduceat(products, starts)
    exact, half = np.cumsum(terms), _rounded_chain(terms)
    at = _chosen(exact)
    last = np.minimum(starts + step, len(products)) - 1
    return _told(says, row, column, last[at], exact[at], half[at])


def narrowed(says: str, row: int, column: int, products: Floats) -> PartialSums | None:
    """A sum in float32, or better, of which the end alone is narrowed to float16."""
    exact = np.cumsum(products)
    at = _chosen(exact)
    return _told(says, row, column, at, exact[at], np.empty(0))


def _told(
    says: str, row: int, column: int, channels: npt.NDArray[np.int64], exact: Floats, half: Floats
) -> PartialSums | None:
    """None where a weight is NaN or infinite: there is no exact sum to draw."""
    if not bool(np.isfinite(exact).all()):
        return None
    return PartialSums(says, row, column, tuple(channels.tolist()), _numbers(exact), _halves(half))


def _rounded_chain(terms: Floats) -> Floats:
    """The running sum rounded to float16 after every term; infinite from where it leaves float16."""
    sums, total = np.empty(len(terms)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for i, term in enumerate(terms.tolist()):
            total = float(np.float64(total + term).astype(np.float16))
            sums[i] = total
    return sums


def _chosen(exact: Floats) -> npt.NDArray[np.int64]:
    """Evenly spread places, the ends, the largest and the smallest."""
    spread = np.linspace(0, len(exact) - 1, min(MOST, len(exact))).round().astype(np.int64)
    return np.unique(np.concatenate([spread, [int(exact.argmax()), int(exact.argmin())]]))


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values.tolist())


def _halves(values: Floats) -> tuple[float | None, ...]:
    return tuple(v if np.isfinite(v) else None for v in values.tolist())
