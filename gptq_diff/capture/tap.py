"""The tap on a kernel call: what goes in and what comes out of every quantised linear, once a step."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gptq_diff.capture.bias_step import BiasStep
from gptq_diff.capture.copies import Copied, copied, largest_values
from gptq_diff.errors import CaptureError
from gptq_diff.numerics.magnitude import Magnitude, magnitude

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""

WAITING_BYTES = 128 * 2**20
"""GPU memory that copies may take before their figures are fetched; finding those takes as much again."""
_INFINITE = float("inf")
ALL_REDUCE = "all-reduce"
"""Path, and part, of the sum over tensor-parallel ranks: x holds the ranks' summands below each other, y is the sum."""
REPLICATED = "replicated"
"""Path, and part, of a tensor that two ranks should hold alike and do not: x is the first rank's, y the other's."""

BIAS = "bias"
"""Path, and part, of a linear's bias: x holds one row of the product (its median, smallest and largest values where a
kernel was run anew for this), y that row as the engine gives it with its bias."""


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


class _Input(NamedTuple):
    """The input last seen: the engine's tensor (held, so that its address is not used again) and a copy of it.

    flat: the copy's values row by row, other values after them. layer: stored name of the call that brought it.
    """

    x_MK: torch.Tensor
    flat: torch.Tensor
    layer: str

    def same_bits(self) -> torch.Tensor:
        """Whether the engine's tensor still holds the values of the copy, one truth value each."""
        x_MK, bits = self.x_MK, _BITS[self.x_MK.element_size()]
        copy_MK = self.flat[: x_MK.numel()].view(x_MK.shape)
        return x_MK.view(bits) == copy_MK.view(bits)

    def is_also(self, x_MK: torch.Tensor) -> bool:
        """Whether x is that same tensor and still holds the same values: engines reuse buffers, and work in place."""
        same_place = (
            x_MK.data_ptr() == self.x_MK.data_ptr()
            and x_MK.dtype == self.x_MK.dtype
            and x_MK.shape == self.x_MK.shape
            and x_MK.stride() == self.x_MK.stride()
        )
        return same_place and bool(self.same_bits().all())


class _Waiting(NamedTuple):
    """A kernel call on a GPU whose figures have not been asked for: every question there waits for all work before it.

    layers, indexes: its linears and their places in the step. path, part, first: as in Call. inner: K.
    shared: stored name of the call that brought x, where it was an earlier one. changed: whether that x has other bits
    than the copy of it, on the GPU; None where nothing is shared.
    """

    layers: tuple[str, ...]
    indexes: tuple[int, ...]
    path: str
    part: str
    first: int
    inner: int
    copy: Copied
    shared: str | None
    changed: torch.Tensor | None


@dataclass(frozen=True)
class Fused:
    """The linears that one kernel computes at once, in the order of their columns.

    widths: columns of each, side by side in the output, nothing before, between or after them.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]


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
        self._x_size = Magnitude(0.0, 0, 0)  # of the input last handed on
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._biases: list[BiasStep] = []

    def begin_step(self, step: int) -> None:
        """A forward pass begins."""
        self._step, self._seen, self._index, self._last = step, set(), {}, None

    def record(
        self, layer: str, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str, *, part: str = "", first: int = 0
    ) -> None:
        """Called right after the kernel, before anything is done to y. part, first: as in Call."""
        stored = stored_name(layer, part)
        index = self._place(layer, stored)
        if asks_later(x_MK) and x_MK.dtype == y_MN.dtype:
            self._wait((layer,), (index,), (y_MN.shape[1],), x_MK, y_MN, path, part, first)
            return
        self._settle()
        last = self._last
        shared = last is not None and last.is_also(x_MK)
        copy_MK = None
        if last is None or not shared:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK.reshape(-1), stored)
            self._x_size = magnitude(copy_MK)
        wanted = self.sink.wants_tensors
        call = Call(
            self._step, index, layer, path, x_MK.shape[0], x_MK.shape[1], y_MN.shape[1], self._x_size, magnitude(y_MN),
            last.layer if shared else None, part, first,
        )  # fmt: skip
        y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format) if wanted else None
        self.sink.take(call, copy_MK if wanted else None, y_copy_MN)

    @property
    def asks_bias(self) -> bool:
        """Whether `record_bias` is to be called: in the prefill alone."""
        return self._step == 0

    def record_bias(self, bias: BiasStep) -> None:
        """A linear's bias; handed on when the step ends, after all its kernel calls."""
        self._biases.append(bias)

    def record_fused(self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str) -> None:
        """`record` for every linear of one kernel call, whose outputs lie side by side in y."""
        if asks_later(x_MK) and x_MK.dtype == y_MN.dtype:
            indexes = tuple([self._place(layer, layer) for layer in parts.layers])
            self._wait(parts.layers, indexes, parts.widths, x_MK, y_MN, path, "", 0)
            return
        for layer, columns_MN in zip(parts.layers, torch.split(y_MN, list(parts.widths), dim=1)):
            self.record(layer, x_MK, columns_MN, path)

    def _place(self, layer: str, stored: str) -> int:
        """The layer's place in this step's order of execution; refused where the call may not come."""
        if stored in self._seen:
            raise CaptureError(f"{stored} ran twice in step {self._step}", "this model's structure is not understood")
        if layer not in self.expected:
            raise CaptureError(
                f"{layer} ran in step {self._step}, and is none of the quantised linears of the checkpoint",
                "this model's structure is not understood",
            )
        self._seen.add(stored)
        return self._index.setdefault(layer, len(self._index))

    def _wait(
        self, layers: tuple[str, ...], indexes: tuple[int, ...], widths: tuple[int, ...], x_MK: torch.Tensor,
        y_MN: torch.Tensor, path: str, part: str, first: int,
    ) -> None:  # fmt: skip
        """Copy now, ask later; a call that is given the very tensor object of the one before shares its copy of x."""
        rows, inner = x_MK.shape
        last = self._last
        if last is not None and last.x_MK is x_MK:
            flat, shared, changed = copied(None, y_MN), last.layer, ~last.same_bits().all()
            copy = Copied(flat, rows, 0, widths, y_MN.shape[0])
        else:
            flat, shared, changed = copied(x_MK, y_MN), None, None
            copy = Copied(flat, rows, inner, widths, y_MN.shape[0])
            self._last = _Input(x_MK, flat, stored_name(layers[0], part))
        self._waiting.append(_Waiting(layers, indexes, path, part, first, inner, copy, shared, changed))
        self._waiting_bytes += flat.nbytes
        if self._waiting_bytes >= WAITING_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Fetch all figures in one go, and hand the calls on in the order they came."""
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        changed = [w.changed for w in waiting if w.changed is not None]
        if changed and any(torch.stack(changed).tolist()):
            raise CaptureError(
                "the engine changed a linear's input before another linear had read it",
                "this model's structure is not understood",
            )
        for w, found in zip(waiting, largest_values([w.copy for w in waiting])):
            if found.x is not None:
                self._x_size = Magnitude(found.x, 0, 0) if found.x < _INFINITE else magnitude(w.copy.x_copy())
            self._hand_on(w, found.y)

    def _hand_on(self, w: _Waiting, largest_y: tuple[float, ...]) -> None:
        """Every linear of one kernel call to the sink."""
        wanted, shared = self.sink.wants_tensors, w.shared
        finite = all(top < _INFINITE for top in largest_y)  # False where one is NaN
        parts = None if finite and not wanted else w.copy.y_parts()
        for i, (layer, top) in enumerate(zip(w.layers, largest_y)):
            y_size = Magnitude(top, 0, 0) if finite or parts is None else magnitude(parts[i])
            call = Call(
                self._step, w.indexes[i], layer, w.path, w.copy.rows, w.inner, w.copy.widths[i], self._x_size, y_size,
                shared, w.part, w.first,
            )  # fmt: skip
            x_MK = w.copy.x_copy() if wanted and shared is None else None
            self.sink.take(call, x_MK, parts[i] if wanted and parts is not None else None)
            shared = shared or call.stored  # the others of a fused kernel share it with the first

    def _take_bias(self, bias: BiasStep) -> None:
        """Its call to the sink."""
        index = self._place(bias.layer, stored_name(bias.layer, BIAS))
        rows, columns = bias.product_RN.shape
        call = Call(
            self._step, index, bias.layer, BIAS, rows, columns, columns, bias.product, bias.with_bias, None, BIAS
        )
        wanted = self.sink.wants_tensors
        self.sink.take(call, bias.product_RN if wanted else None, bias.with_bias_1N if wanted else None)

    def end_step(self) -> None:
        """A forward pass has ended: every expected layer must have been seen exactly once."""
        self._settle()
        biases, self._biases = self._biases, []
        for bias in biases:
            self._take_bias(bias)
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
