"""The places of a step's calls: who ran, in which order, and that nobody ran twice or is not known.

Most prompts run the same kernels in the same order, and a prefill waits for this. So the calls of a chunk are compared
with those that left at the same point of the step before, and are gone through only where they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import is_
from typing import NamedTuple

from gptq_diff.capture.bias_step import BiasStep
from gptq_diff.capture.call import BIAS, stored_name
from gptq_diff.capture.stage import AsStaged, Site
from gptq_diff.errors import CaptureError


class Point(NamedTuple):
    """A step as far as some chunk of it; nothing here is changed any more.

    expected: all layers that may run. sites: of that chunk's calls. seen: stored names so far. places: of the layers
    so far.
    """

    expected: frozenset[str]
    sites: list[Site]
    seen: set[str]
    places: dict[str, int]


class Known:
    """What the step before was like: its points, and the biases that were in order at its end."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.biases: list[BiasStep] = []
        self.biases_of: dict[str, int] | None = None


class Numbering:
    """One step's.

    index: places of the layers so far. rows: numbers of rows that calls of chunks had, and who had so many.
    """

    def __init__(self, step: int, expected: frozenset[str], known: Known) -> None:
        self.step = step
        self.expected = expected
        self.index: dict[str, int] = {}
        self.rows: dict[int, str] = {}
        self._seen: set[str] = set()
        self._known = known
        self._points: int | None = 0  # that were as before; None once something else was added
        self._shared = False  # with a point

    def call(self, layer: str, stored: str) -> int:
        """The place of one that did not come in a chunk. CaptureError where it may not come."""
        self._points = None
        if self._shared:
            self._own()
        if stored in self._seen or layer not in self.expected:
            self._refuse([layer], [stored])
        self._seen.add(stored)
        return self.index.setdefault(layer, len(self.index))

    def chunk(self, calls: Sequence[AsStaged]) -> None:
        """Those of a chunk have their places. CaptureError where one of them may not come."""
        sites = [call[0] for call in calls]
        if not self.rows.keys() >= {call[2] for call in calls}:
            for call in calls:
                self.rows.setdefault(call[2], call[0].stored[0])
        points, at = self._known.points, self._points
        if at is not None and at < len(points) and points[at].expected is self.expected and points[at].sites == sites:
            self._seen, self.index, self._shared, self._points = points[at].seen, points[at].places, True, at + 1
            return
        layers = [name for here in sites for name in here.parts.layers]
        self._add(layers, [name for here in sites for name in here.stored])
        if at is not None:
            points[at:] = [Point(self.expected, sites, self._seen, self.index)]
            self._shared, self._points = True, at + 1

    def _add(self, layers: list[str], stored: list[str]) -> None:
        if self._shared:
            self._own()
        new = set(stored)
        if len(new) < len(stored) or not self._seen.isdisjoint(new) or not self.expected.issuperset(layers):
            self._refuse(layers, stored)
        self._seen |= new
        for layer in layers:
            self.index.setdefault(layer, len(self.index))

    def _own(self) -> None:
        """What is shared with a point is not changed."""
        self._seen, self.index, self._shared = set(self._seen), dict(self.index), False

    def _refuse(self, layers: list[str], stored: list[str]) -> None:
        """Say which is the first that may not come."""
        seen = set(self._seen)
        for layer, name in zip(layers, stored):
            if name in seen:
                raise CaptureError(f"{name} ran twice in step {self.step}", "this model's structure is not understood")
            if layer not in self.expected:
                raise CaptureError(
                    f"{layer} ran in step {self.step}, and is none of the quantised linears of the checkpoint",
                    "this model's structure is not understood",
                )
            seen.add(name)

    def end(self, biases: list[BiasStep]) -> None:
        """The step has ended, with those biases. CaptureError for one that is odd, or a layer that did not run."""
        known = self._known
        if known.biases_of is not self.index or not _are(known.biases, biases):
            self._check_biases(biases)
            known.biases, known.biases_of = biases, self.index
        if len(self.index) < len(self.expected):
            missing = sorted(self.expected.difference(self.index))
            raise CaptureError(
                f"{len(missing)} of {len(self.expected)} quantised linears did not run in step {self.step}, "
                f"the first is {missing[0]}",
                "the engine bypasses the tap on them (a fused or compiled path?)",
            )

    def _check_biases(self, biases: list[BiasStep]) -> None:
        """Each is of a linear that ran in this step, which has one."""
        layers = Counter(bias.layer for bias in biases)
        odd = {layer: "ran twice" for layer, times in layers.items() if times > 1}
        odd |= dict.fromkeys(layers.keys() - self.index.keys(), "came without its linear")
        for layer, what in odd.items():
            raise CaptureError(
                f"{stored_name(layer, BIAS)} {what} in step {self.step}", "this model's structure is not understood"
            )


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether they are the very same objects, one by one."""
    return len(some) == len(others) and all(map(is_, some, others))
