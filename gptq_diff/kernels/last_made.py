"""What was made of the last linear, kept: a replay asks for the same one many times in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Generic, TypeVar

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

Prepared = TypeVar("Prepared")


class LastMade(Generic[Prepared]):
    """Remembers what `make` gave for the last linear."""

    def __init__(self, make: Callable[[PackedLinear], Prepared]) -> None:
        self._make = make
        self._linear: PackedLinear | None = None
        self._prepared: Prepared | None = None

    def of(self, linear: PackedLinear) -> Prepared:
        """What `make` gives for it; made again only for another one."""
        if self._linear is not linear or self._prepared is None:
            self._prepared, self._linear = self._make(linear), linear
        return self._prepared
