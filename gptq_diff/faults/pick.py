"""How large a fault of a given size is: how many columns, how many groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gptq_diff.faults.fault import Site

Mask = npt.NDArray[np.bool_]


def count(total: int, size: float) -> int:
    """1 (size 0) to all (size 1), evenly on a logarithmic scale."""
    return int(max(1, min(total, round(total**size))))


def mask(rng: np.random.Generator, total: int, chosen: int) -> Mask:
    """[total]: that many, at random."""
    found = np.zeros(total, dtype=bool)
    found[rng.choice(total, chosen, replace=False)] = True
    return found


def columns(site: Site) -> Mask:
    """[N]: the columns to damage."""
    n = site.linear.columns
    return mask(site.rng, n, count(n, site.size))


def groups(site: Site) -> Mask:
    """[G]: the groups to damage; drawn apart from the columns, so that few groups of all columns come too."""
    g = site.linear.groups
    return mask(site.rng, g, count(g, float(site.rng.random())))


def words(chosen: Mask, of: str) -> str:
    """For example "3 of 128 columns"."""
    return f"{int(chosen.sum())} of {len(chosen)} {of}"
