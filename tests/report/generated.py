"""Reports of any content, made field by field from the records' own types: for properties that hold for all of them.

A seed makes a report; drawing every field of one by itself would take Hypothesis seconds a report.
"""

from __future__ import annotations

import dataclasses
import random
import types
import typing
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from gptq_diff.records import PartialSums, Report
from tests.report.build import LAYERS, STATUSES

MOST = 2
"""Entries of a list or a mapping: a report nests seven deep."""


def reports(texts: Sequence[str]) -> st.SearchStrategy[Report]:
    """Reports whose every string is one of `texts` or random characters, names of statuses and layers apart."""
    return st.integers(0, 2**32).map(lambda seed: Maker(random.Random(seed), texts).value("", Report))


class Maker:
    def __init__(self, rng: random.Random, texts: Sequence[str]) -> None:
        self.rng, self._texts = rng, texts

    def value(self, name: str, kind: Any) -> Any:
        """Something of that type; of fields whose meaning is narrower, something that readers may rely on."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self.value(name, self.rng.choice(arguments))
        if origin is tuple and arguments[-1] is Ellipsis:
            return tuple(self.value("", arguments[0]) for _ in range(self.rng.randint(0, MOST)))
        if origin is tuple:
            return tuple(self.value("", each) for each in arguments)
        if origin is dict:
            pairs = range(self.rng.randint(0, MOST))
            return {self.value("", arguments[0]): self.value("", arguments[1]) for _ in pairs}
        if kind is PartialSums:
            return self._sums()
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            return kind(**{f.name: self.value(f.name, hints[f.name]) for f in dataclasses.fields(kind)})  # type: ignore[operator]
        return self._plain(name, kind)

    def _sums(self) -> PartialSums:
        """As many sums as channels, one at least; in float16 as many or none."""
        rng = self.rng
        count = rng.randint(1, 4)
        exact = tuple(rng.choice((0.0, -7e4, 81204.0)) for _ in range(count))
        half = tuple(rng.choice((None, 0.0, 65504.0)) for _ in range(count)) if rng.random() < 0.5 else ()
        return PartialSums(rng.choice(self._texts), 0, 260, tuple(range(count)), exact, half)

    def _plain(self, name: str, kind: Any) -> Any:
        rng = self.rng
        if kind is str:
            return {"status": rng.choice(STATUSES), "layer": rng.choice(LAYERS)}.get(name) or rng.choice(self._texts)
        if kind is int:
            return {"schema_version": 1, "tokens": rng.randint(0, 300)}.get(name, rng.choice((0, 1, 7, 10**6)))
        if kind is float:
            return 65504.0 if name == "limit" else rng.choice((0.0, -1.5, 1e-9, 21835.0, 3e38, rng.random()))
        return {bool: rng.random() < 0.5, type(None): None}[kind]
