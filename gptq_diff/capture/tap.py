"""The tap on a kernel call: what goes in and what comes out of every quantised linear, once a step."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gptq_diff.errors import CaptureError
from gptq_diff.numerics.magnitude import Magnitude, magnitude

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""


WAITING_BYTES = 256 * 2**20
"""GPU memory that copies may take before they are fetched."""
_UNKNOWN = Magnitude(0.0, 0, 0)
ALL_REDUCE = "all-reduce"
"""Path, and part, of the sum over tensor-parallel ranks: x holds the ranks' summands below each other, y is the sum."""
REPLICATED = "replicated"
"""Path, and part, of a tensor that two ranks should hold alike and do not: x is the first rank's, y the other's."""


def stored_name(layer: str, part: str) -> str:
    """The name that a call's tensors are stored under; no layer's name holds an `@`."""
    return f"{layer}@{part}" if part else layer


def layer_of(stored: str) -> str:
    """The layer in a stored name."""
    return stored.partition("@")[0]


@dataclass(frozen=True)
class Call:
    """One kernel call as the tap saw it.

    step: 0 is the prefill, then one per decode step.
    index: place of the layer in the step's order of execution.
    layer: canonical (Hugging Face) name.
    path: the arithmetic that really ran (kernels.base.Product.path).
    rows, in_features, out_features: M, K, N.
    x, y: magnitudes of the input and of the output.
    shared_input: stored name of an earlier call of this step whose input is the very same tensor, or None.
    part: "" for the whole linear, else a tensor-parallel rank's number, ALL_REDUCE or REPLICATED.
    first: the row of W that x[:, 0] is multiplied with; above 0 for a rank's share only.
    """

    step: int
    index: int
    layer: str
    path: str
    rows: int
    in_features: int
    out_features: int
    x: Magnitude
    y: Magnitude
    shared_input: str | None
    part: str = ""
    first: int = 0

    @property
    def stored(self) -> str:
        """The name that this call's tensors are stored under."""
        return stored_name(self.layer, self.part)


class Sink(abc.ABC):
    """Takes what the tap sees; tensors are the tap's own contiguous copies, and come when `wants_tensors` is true."""

    wants_tensors: bool

    @abc.abstractmethod
    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        """Keep one call; x is None where `call.shared_input` names the layer that brought it."""


@dataclass(frozen=True)
class _Input:
    """The input last seen: the engine's tensor (held, so that its address is not used again), a copy, its size.

    layer: stored name of the call that brought it.
    """

    x_MK: torch.Tensor
    copy_MK: torch.Tensor
    layer: str
    size: Magnitude

    def is_also(self, x_MK: torch.Tensor) -> bool:
        """Whether x is that same tensor and still holds the same values: engines reuse buffers, and work in place."""
        same_place = (
            x_MK.data_ptr() == self.x_MK.data_ptr()
            and x_MK.dtype == self.x_MK.dtype
            and x_MK.shape == self.x_MK.shape
            and x_MK.stride() == self.x_MK.stride()
        )
        bits = _BITS[x_MK.element_size()]
        return same_place and torch.equal(x_MK.view(bits), self.copy_MK.view(bits))


@dataclass(frozen=True)
class _Waiting:
    """A call on a GPU whose figures have not been asked for yet: every question there waits for all work before it.

    call: with nothing known of x and y. largest_y, largest_x: on the GPU, their largest absolute values, NaN if there
    is any; of x only where this call brought it. changed: whether a shared input has other bits than the copy of it, on
    the GPU; None where nothing is shared, or nothing can have happened to it in between.
    """

    call: Call
    x_MK: torch.Tensor
    y_MN: torch.Tensor
    largest_y: torch.Tensor
    largest_x: torch.Tensor | None
    changed: torch.Tensor | None


@dataclass(frozen=True)
class Columns:
    """One linear's columns, first to last - 1, in the output of a kernel that computed several at once."""

    layer: str
    first: int
    last: int


class Tap:
    """Collects the kernel calls of one prompt and refuses to let one go missing.

    On a GPU copies are made at once, and figures are fetched together at the end of a step, or once the copies take
    WAITING_BYTES. expected: the layers that must be seen exactly once in every step. order: the layers as the prefill
    ran them.
    """

    def __init__(self, expected: frozenset[str], sink: Sink) -> None:
        self.expected = expected
        self.sink = sink
        self.order: list[str] = []
        self._step = -1
        self._seen: set[str] = set()
        self._index: dict[str, int] = {}  # layers, in order of execution
        self._last: _Input | None = None
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0

    def begin_step(self, step: int) -> None:
        """A forward pass begins."""
        self._step, self._seen, self._index, self._last = step, set(), {}, None

    def record(
        self, layer: str, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str, *, part: str = "", first: int = 0
    ) -> None:
        """Called right after the kernel, before anything is done to y. part, first: as in Call."""
        call = self._call(layer, x_MK, y_MN.shape[1], path, part, first)
        if asks_later(x_MK):
            self._wait(call, x_MK, y_MN.clone(memory_format=torch.contiguous_format))
            return
        last = self._last
        shared = last is not None and last.is_also(x_MK)
        if last is None or not shared:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK, call.stored, magnitude(copy_MK))
        call = replace(call, x=last.size, y=magnitude(y_MN), shared_input=last.layer if shared else None)
        if self.sink.wants_tensors:
            y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format)
            self.sink.take(call, None if shared else last.copy_MK, y_copy_MN)
        else:
            self.sink.take(call, None, None)

    def record_fused(self, parts: Sequence[Columns], x_MK: torch.Tensor, y_MN: torch.Tensor, path: str) -> None:
        """`record` for every linear of one kernel call, whose outputs lie side by side in y."""
        if not asks_later(x_MK):
            for part in parts:
                self.record(part.layer, x_MK, y_MN[:, part.first : part.last], path)
            return
        y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format)
        for part in parts:
            call = self._call(part.layer, x_MK, part.last - part.first, path, "", 0)
            self._wait(call, x_MK, y_copy_MN[:, part.first : part.last], untouched=part is not parts[0])

    def _call(self, layer: str, x_MK: torch.Tensor, columns: int, path: str, part: str, first: int) -> Call:
        """The next call of this step, of which nothing is known yet but its place; refused where it may not come."""
        stored = stored_name(layer, part)
        if stored in self._seen:
            raise CaptureError(f"{stored} ran twice in step {self._step}", "this model's structure is not understood")
        if layer not in self.expected:
            raise CaptureError(
                f"{layer} ran in step {self._step}, and is none of the quantised linears of the checkpoint",
                "this model's structure is not understood",
            )
        self._seen.add(stored)
        index = self._index.setdefault(layer, len(self._index))
        return Call(
            self._step, index, layer, path, x_MK.shape[0], x_MK.shape[1], columns, _UNKNOWN, _UNKNOWN, None, part, first
        )

    def _wait(self, call: Call, x_MK: torch.Tensor, y_copy_MN: torch.Tensor, *, untouched: bool = False) -> None:
        """Ask later; a call that is given the very tensor object of the one before shares its copy of the input.

        untouched: nothing ran between that call and this one.
        """
        last, changed, largest_x = self._last, None, None
        if last is not None and last.x_MK is x_MK:
            bits = _BITS[x_MK.element_size()]
            changed = None if untouched else (x_MK.view(bits) != last.copy_MK.view(bits)).any()
            call = replace(call, shared_input=last.layer)
        else:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK, call.stored, _UNKNOWN)
            largest_x = largest(copy_MK)
            self._waiting_bytes += copy_MK.nbytes
        self._waiting.append(_Waiting(call, last.copy_MK, y_copy_MN, largest(y_copy_MN), largest_x, changed))
        self._waiting_bytes += y_copy_MN.nbytes
        if self._waiting_bytes >= WAITING_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Fetch all figures in one go, and hand the calls on in the order they came."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not waiting:
            return
        changed = [w.changed for w in waiting if w.changed is not None]
        if changed and any(torch.stack(changed).tolist()):
            raise CaptureError(
                "the engine changed a linear's input before another linear had read it",
                "this model's structure is not understood",
            )
        asked = [t for w in waiting for t in (w.largest_y, w.largest_x) if t is not None]
        found = iter(torch.stack(asked).tolist())
        size, wanted = _UNKNOWN, self.sink.wants_tensors
        for w in waiting:
            of_y = _magnitude_of(w.y_MN, next(found))
            if w.largest_x is not None:
                size = _magnitude_of(w.x_MK, next(found))
            elif w is waiting[0]:
                size = magnitude(w.x_MK)  # the call that brought it has been handed on already
            x_MK = w.x_MK if wanted and w.largest_x is not None else None
            self.sink.take(replace(w.call, x=size, y=of_y), x_MK, w.y_MN.contiguous() if wanted else None)

    def end_step(self) -> None:
        """A forward pass has ended: every expected layer must have been seen exactly once."""
        self._settle()
        missing = sorted(self.expected.difference(self._index))
        if missing:
            raise CaptureError(
                f"{len(missing)} of {len(self.expected)} quantised linears did not run in step {self._step}, "
                f"the first is {missing[0]}",
                "the engine bypasses the tap on them (a fused or compiled path?)",
            )
        if self._step == 0:
            self.order = list(self._index)
        self._last = None


def asks_later(t: torch.Tensor) -> bool:
    """Whether figures of that tensor are fetched together with those of later calls."""
    return t.is_cuda


def largest(t: torch.Tensor) -> torch.Tensor:
    """The largest absolute value where t is, without waiting for it: one pass, NaN if there is one, 0 for no values."""
    if t.numel() == 0:
        return t.new_zeros(())
    found: torch.Tensor = torch.linalg.vector_norm(t, ord=float("inf"))
    return found


def _magnitude_of(t: torch.Tensor, top: float) -> Magnitude:
    """As numerics.magnitude, the largest absolute value, or NaN, being known already."""
    return Magnitude(top, 0, 0) if top < float("inf") else magnitude(t)
