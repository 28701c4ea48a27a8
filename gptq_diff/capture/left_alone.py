"""Which tensors an engine leaves alone until its step is over: they are held, and copied many together.

A copy made at once costs the engine's process a launch, and a short prefill is nothing but launches. Some tensors may
not be held: a normalisation or a rotation works in place. So the first calls of a module are copied and held as well,
and compared when their step is over; and one module after the other is looked at again, one a step, for as long as the
engine is there.

That nothing changed is only evidence where something would have: not in values that are NaN or zero, nor in a single
row of a prefill, whose position 0 a rotary embedding leaves as it is. What was once written into is never held again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptq_diff.capture.ways import Views
from gptq_diff.errors import CaptureError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""
MOST_BYTES = 256 * 2**20
"""Of the engine's tensors that are held to be compared in one step; further modules have their turn in a later one."""


def other_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether any value of two tensors of one shape and dtype differs in bits: a tensor, not waited for here."""
    bits = _BITS[a.element_size()]
    return (a.view(bits) != b.view(bits)).any()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all are the same: known at the first that differs, on a CPU."""
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


def _telling(values_MK: torch.Tensor) -> torch.Tensor:
    """Whether all values are finite, with some in every row that are not zero: a tensor, not waited for here."""
    return torch.isfinite(values_MK).all() & (values_MK != 0).any(dim=1).all()


class Left:
    """What is known of one module's calls of many rows, or of those of one row.

    known: x and y may be relied on in this step. found: they have been looked at before.
    x, y: the engine leaves that tensor alone. x_written, y_written: it was seen to write into it.
    """

    __slots__ = ("found", "known", "name", "x", "x_written", "y", "y_written")

    def __init__(self, name: str) -> None:
        self.name = name
        self.forget()

    def forget(self) -> None:
        """Nothing."""
        self.known = self.found = self.x = self.y = self.x_written = self.y_written = False


class Compared(NamedTuple):
    """A call that was copied at once, and whose tensors are held besides, to be compared when its step is over."""

    left: Left
    views: Views
    x_MK: torch.Tensor
    y_MN: torch.Tensor


class Watch:
    """Compares calls of a step with their copies.

    on: calls of modules not known are to be added. outputs: whether outputs may be held at all.
    """

    __slots__ = ("_again", "_bytes", "_compared", "_many", "_next", "_one", "_prefill", "on", "outputs")

    def __init__(self) -> None:
        self.on = self._prefill = False
        self.outputs = True
        self._compared: list[Compared] = []
        self._bytes = 0
        self._many: list[Left] = []
        self._one: list[Left] = []
        self._next = [0, 0]  # whose turn it is to be looked at again, of many rows, of one
        self._again: Left | None = None

    def of(self, name: str) -> tuple[Left, Left]:
        """New ones for a module of that name: of its calls of many rows, and of those of one."""
        many, one = Left(name), Left(name)
        self._many.append(many)
        self._one.append(one)
        return many, one

    def forget(self) -> None:
        """Other kernels run from now on: nothing is known of any module, and those there are have no turn any more."""
        for left in (*self._many, *self._one):
            left.forget()
        self._many, self._one, self._again = [], [], None

    def begin(self, step: int) -> None:
        """A step begins: what the last one showed is taken note of, and one known module is looked at again."""
        self.note()
        self.on, self._prefill, self._bytes = True, step == 0, 0
        lefts, kind = (self._many, 0) if self._prefill else (self._one, 1)
        if lefts:
            self._next[kind] = (self._next[kind] + 1) % len(lefts)
            self._again = lefts[self._next[kind]]
            self._again.known = False

    def add(self, left: Left, views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
        """A call that was copied to there; it is compared if that tells anything, and if there is room."""
        self._bytes += x_MK.nbytes + y_MN.nbytes
        if self._bytes > MOST_BYTES and self._compared:
            self.on = False
        elif not (self._prefill and x_MK.shape[0] == 1):
            self._compared.append(Compared(left, views, x_MK, y_MN))

    def drop(self) -> None:
        """No more in this step, and nothing is said of it: copies of it are no longer there."""
        self.on, self._compared = False, []
        if self._again is not None:
            self._again.known = self._again.found
            self._again = None

    def note(self) -> None:
        """The step is over, and its copies are still there: compare. Waits for the GPU, so it is done between steps.

        CaptureError where the engine wrote into what it had left alone before.
        """
        compared = self._compared
        self.drop()
        if not compared:
            return
        answers = [
            torch.stack([other_bits(x, c.x_MK), other_bits(y, c.y_MN), _telling(x) & _telling(y)])
            for c in compared
            for x, y in (c.views.parts,)
        ]
        for (left, *_), (x_written, y_written, telling) in zip(compared, torch.stack(answers).tolist()):
            for what, relied_on, written in (("input", left.x, x_written), ("output", left.y, y_written)):
                if relied_on and written:
                    raise CaptureError(
                        f"the engine wrote into {left.name}'s {what} before its step was over, and had left it alone "
                        "in a step before",
                        "this model's structure is not understood",
                    )
            left.x_written |= x_written
            left.y_written |= y_written
            if telling:
                left.x, left.y = not left.x_written, self.outputs and not left.y_written
                left.known = left.found = True
