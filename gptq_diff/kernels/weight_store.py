"""Unpacked weights kept within a byte budget, so that decode steps do not unpack the same layer again and again."""

from __future__ import annotations

from typing import Callable, Generic, Protocol, TypeVar

DEFAULT_BUDGET = 512 * 2**20
"""Bytes; SmolLM2-135M's 106 million weights take 106 MB as codes and 212 MB as halves."""


class _Sized(Protocol):
    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""


Weight = TypeVar("Weight", bound=_Sized)


class WeightStore(Generic[Weight]):
    """Keeps the first weights that fit into `budget` bytes and drops none; 0 keeps nothing.

    Layers are visited in the same cycle at every step; least-recently-used eviction would drop each weight just
    before it is wanted again.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self.used = 0
        self._kept: dict[str, Weight] = {}

    def get(self, name: str, build: Callable[[], Weight]) -> Weight:
        """The weight kept under that name, or a newly built one, kept if it fits."""
        kept = self.find(name)
        if kept is None:
            kept = build()
            if self.has_room(kept.nbytes):
                self._kept[name] = kept
                self.used += kept.nbytes
        return kept

    def find(self, name: str) -> Weight | None:
        """The weight kept under that name, or None."""
        return self._kept.get(name)

    def has_room(self, nbytes: int) -> bool:
        """Whether a weight of that size would be kept."""
        return self.used + nbytes <= self.budget
