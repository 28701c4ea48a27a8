"""Lining captures up: which calls of which backends belong to one layer, and which inputs may be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptq_diff.capture.store import CaptureReader
from gptq_diff.capture.tap import ALL_REDUCE, BIAS, REPLICATED, stored_name
from gptq_diff.compare.input_gaps import Pair, gap, gaps
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.compare.rows import RowsSoFar

STEPS_AFTER = frozenset({ALL_REDUCE, BIAS, REPLICATED})
"""Paths that are not a linear's own product: what happens to it afterwards."""
FEW_ROWS = 4
"""Inputs of fewer rows are compared by the judge, those of many backends and steps together."""


class Place(NamedTuple):
    """Where one call happened: step, index in that step's order, the path that ran, and its part (capture.tap.Call)."""

    step: int
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not asked for
    path: str
    stored: str
    part: str
    first: int


class Captured:
    """One capture with its calls by layer, beside the reference's capture of the same prompt (or None).

    seconds: what judging it has taken so far. rows: the figures of single rows that it gave.
    """

    def __init__(self, reader: CaptureReader, reference: CaptureReader | None) -> None:
        self.reader = reader
        self.reference = reference
        self.places: dict[str, list[Place]] = defaultdict(list)
        for line in reader.stats():
            layer, part = line["layer"], line.get("part", "")
            place = Place(
                line["step"], line["index"], line["path"], stored_name(layer, part), part, line.get("first", 0)
            )
            self.places[layer].append(place)
        self._comparable = comparable_steps(reader, reference)
        # Rows of the prompt that the reference computed before this one's first: what a prefix cache answered for.
        self._lag = reader.manifest.cached_rows - (reference.manifest.cached_rows if reference is not None else 0)
        self._gaps: dict[tuple[str, str], float | None] = {}
        self._ahead: dict[str, float | None] = {}  # the same of the prefill, by linear, where it was compared ahead
        self.seconds = 0.0
        self.rows = RowsSoFar()

    def compare_inputs(self) -> None:
        """Compare the prefill's inputs with the reference's before anybody asks, many at once.

        They are as many bytes as there are; reading them for the first time costs as much as the sums.
        """
        if self.reference is None or self._lag:
            return
        pairs: dict[tuple[str, str], Pair] = {}
        keys: dict[str, tuple[str, str]] = {}
        for layer, places in self.places.items():
            if not _whole_in_prefill(places):
                continue
            key = (self.reader.stored_key(0, layer, "in"), self.reference.stored_key(0, layer, "in"))
            if key not in pairs:
                if not (self.reader.has(0, layer, "in") and self.reference.has(0, layer, "in")):
                    continue
                x_MK = self.reader.tensor(0, layer, "in")
                if x_MK.shape[0] < FEW_ROWS:
                    continue
                pairs[key] = x_MK, self.reference.tensor(0, layer, "in")
            keys[layer] = key
        found = dict(zip(pairs, gaps(list(pairs.values()))))
        self._ahead = {layer: found[key] for layer, key in keys.items()}

    def has_calls(self, layer: str) -> bool:
        """Whether there is any whose tensors were kept."""
        return any(self.reader.has(place.step, place.stored, "out") for place in self.places.get(layer, []))

    def calls(self, layer: str) -> list[CapturedCall]:
        """Every call of that layer whose tensors were kept, oldest first."""
        places = [place for place in self.places.get(layer, []) if self.reader.has(place.step, place.stored, "out")]
        return [self._call(layer, place) for place in places]

    def _call(self, layer: str, place: Place) -> CapturedCall:
        x_MK = self.reader.tensor(place.step, place.stored, "in")
        y_MN = self.reader.tensor(place.step, place.stored, "out")
        if place.step == 0 and not place.part and place.path not in STEPS_AFTER and layer in self._ahead:
            return CapturedCall(0, place.index, place.path, x_MK, y_MN, None, self._ahead[layer])
        lag = 0 if place.step else self._lag
        reference_x, gap = None, None
        comparable = self.reference is not None and place.step < self._comparable and place.path not in STEPS_AFTER
        if comparable and self.reference is not None and self.reference.has(place.step, layer, "in"):
            if lag >= 0 and (x_MK.shape[0] < FEW_ROWS or place.part):
                reference_x = from_row(self.reference.tensor(place.step, layer, "in"), lag, x_MK.shape[0])
                if place.part:
                    reference_x = reference_x[:, place.first : place.first + x_MK.shape[1]]
            else:
                gap = self._gap(layer, place.step, x_MK, self.reference, lag)
        return CapturedCall(
            step=place.step, index=place.index, path=place.path, reference_x=reference_x, inherited_l2_rel=gap,
            x_MK=x_MK, y_MN=y_MN, part=place.part, first=place.first,
        )  # fmt: skip

    def _gap(self, layer: str, step: int, x_MK: torch.Tensor, reference: CaptureReader, lag: int) -> float | None:
        """l2_rel of this input against the reference's; once for all linears that took the same input on both sides.

        lag: as `_lag`. Over the rows that both computed.
        """
        key = (self.reader.stored_key(step, layer, "in"), reference.stored_key(step, layer, "in"))
        if key not in self._gaps:
            reference_x = reference.tensor(step, layer, "in")
            if lag < 0:
                x_MK = from_row(x_MK, -lag, reference_x.shape[0])
            self._gaps[key] = gap(x_MK, from_row(reference_x, lag, x_MK.shape[0]))
        return self._gaps[key]


def _whole_in_prefill(places: Sequence[Place]) -> bool:
    """Whether one of these is the product of a whole linear in the prefill."""
    for place in places:  # noqa: SIM110  `any` makes a generator for each of a capture's hundreds of linears
        if place.step == 0 and not place.part and place.path not in STEPS_AFTER:
            return True
    return False


def from_row(x_MK: torch.Tensor, first: int, rows: int) -> torch.Tensor:
    """The rows from that one on where there are more than `rows`, all of them where not: an output head's last row."""
    return x_MK[first:] if first > 0 and x_MK.shape[0] > rows else x_MK


def comparable_steps(reader: CaptureReader, reference: CaptureReader | None) -> int:
    """Number of steps, from the prefill on, in which both were fed the same tokens."""
    if reference is None:
        return 0
    a, b = reader.manifest, reference.manifest
    if a.forced:
        return min(a.steps, b.steps)
    steps = 1
    while steps < min(a.steps, b.steps) and a.tokens[steps - 1] == b.tokens[steps - 1]:
        steps += 1
    return steps
