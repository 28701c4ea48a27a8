"""Which tensors an engine leaves alone until its step is over: they are held, and copied many together.

A copy made at once costs the engine's process a launch, and a short prefill is nothing but launches. Some tensors may
not be held: a normalisation or a rotation works in place. So a module's first call is copied and held as well, and
compared when its step is over; and one module after the other is looked at again, in one step each, for as long as the
engine is there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptq_diff.capture.ways import Views
from gptq_diff.errors import CaptureError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""


def other_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether any value of two tensors of one shape and dtype differs in bits: a tensor, not waited for here."""
    bits = _BITS[a.element_size()]
    return (a.view(bits) != b.view(bits)).any()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all are the same: known at the first that differs, on a CPU."""
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


class Left:
    """What is known of one module's calls of many rows, or of those of one row.

    known: x and y say something, and may be relied on in this step. x, y: the engine leaves that tensor alone.
    found: they have been looked at before.
    """

    __slots__ = ("found", "known", "name", "x", "y")

    def __init__(self, name: str) -> None:
        self.name = name
        self.known = self.found = self.x = self.y = False


class Seen(NamedTuple):
    """A call that was copied at once, and whose tensors are held besides, to be compared when its step is over."""

    left: Left
    views: Views
    x_MK: torch.Tensor
    y_MN: torch.Tensor


class Watch:
    """Compares calls of a step with their copies.

    on: calls of modules not known are to be added to `seen`.
    """

    __slots__ = ("_lefts", "_next", "on", "seen")

    def __init__(self) -> None:
        self.on = False
        self.seen: list[Seen] = []
        self._lefts: list[Left] = []
        self._next = 0

    def of(self, name: str) -> Left:
        """A new one, for a module of that name."""
        left = Left(name)
        self._lefts.append(left)
        return left

    def begin(self) -> None:
        """A step begins: what the last one showed is taken note of, and one known module is looked at again."""
        self.note()
        self.on = True
        if self._lefts:
            self._next = (self._next + 1) % len(self._lefts)
            self._lefts[self._next].known = False

    def drop(self) -> None:
        """No more in this step, and nothing is said of it: copies of it are no longer there."""
        self.on, self.seen = False, []

    def note(self) -> None:
        """The step is over, and its copies are still there: compare. Waits for the GPU, so it is done between steps.

        CaptureError where the engine changed what it had left alone before.
        """
        seen = self.seen
        self.drop()
        if not seen:
            return
        changed = [other_bits(*pair) for s in seen for pair in zip(s.views.parts, (s.x_MK, s.y_MN))]
        for (left, *_), (x_changed, y_changed) in zip(seen, torch.stack(changed).view(-1, 2).tolist()):
            for what, relied_on, changed_now in (("input", left.x, x_changed), ("output", left.y, y_changed)):
                if left.found and relied_on and changed_now:
                    raise CaptureError(
                        f"the engine wrote into {left.name}'s {what} before its step was over, and had left it alone "
                        "in a step before",
                        "this model's structure is not understood",
                    )
            left.x, left.y, left.known, left.found = not x_changed, not y_changed, True, True
