"""The script that shows the defect alone, as an issue speaks of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Repro:
    """repro.py as it lies in the bundle.

    live: it failed on the kernel itself, not on a simulation of it. seen_on: versions and GPU then. shape: M, K, N.
    inputs: that are not zero. failing, passing: (as the kernel gave it, exact) at the output that is shown.
    data: the file beside it, "" for none.
    """

    text: str
    live: bool
    seen_on: dict[str, str]
    captured: tuple[int, int, int]
    shape: tuple[int, int, int]
    inputs: int
    failing: tuple[str, float]
    passing: tuple[str, float]
    data: str
