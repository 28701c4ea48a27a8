"""The tap on a kernel call: what goes in and what comes out of every quantised linear, once a step."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch

from gptq_diff.errors import CaptureError
from gptq_diff.numerics.magnitude import Magnitude, magnitude

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""


@dataclass(frozen=True)
class Call:
    """One kernel call as the tap saw it.

    step: 0 is the prefill, then one per decode step.
    index: place in the step's order of execution.
    layer: canonical (Hugging Face) name.
    path: the arithmetic that really ran (kernels.base.Product.path).
    rows, in_features, out_features: M, K, N.
    x, y: magnitudes of the input and of the output.
    shared_input: the earlier layer of this step whose input is the very same tensor, or None.
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


class Sink(abc.ABC):
    """Takes what the tap sees; tensors are the tap's own contiguous copies, and come when `wants_tensors` is true."""

    wants_tensors: bool

    @abc.abstractmethod
    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        """Keep one call; x is None where `call.shared_input` names the layer that brought it."""


@dataclass(frozen=True)
class _Input:
    """The input last seen: the engine's tensor (held, so that its address is not used again), a copy, its size."""

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


class Tap:
    """Collects the kernel calls of one prompt and refuses to let one go missing.

    expected: the layers that must be seen exactly once in every step. order: the layers as the prefill ran them.
    """

    def __init__(self, expected: frozenset[str], sink: Sink) -> None:
        self.expected = expected
        self.sink = sink
        self.order: list[str] = []
        self._step = -1
        self._seen: dict[str, None] = {}  # in order
        self._last: _Input | None = None

    def begin_step(self, step: int) -> None:
        """A forward pass begins."""
        self._step, self._seen, self._last = step, {}, None

    def record(self, layer: str, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str) -> None:
        """Called right after the kernel, before anything is done to y."""
        if layer in self._seen:
            raise CaptureError(f"{layer} ran twice in step {self._step}", "this model's structure is not understood")
        if layer not in self.expected:
            raise CaptureError(
                f"{layer} ran in step {self._step}, and is none of the quantised linears of the checkpoint",
                "this model's structure is not understood",
            )
        last = self._last
        shared = last is not None and last.is_also(x_MK)
        if last is None or not shared:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK, layer, magnitude(copy_MK))
        call = Call(
            self._step, len(self._seen), layer, path, x_MK.shape[0], x_MK.shape[1], y_MN.shape[1],
            last.size, magnitude(y_MN), last.layer if shared else None,
        )  # fmt: skip
        self._seen[layer] = None
        if self.sink.wants_tensors:
            y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format)
            self.sink.take(call, None if shared else last.copy_MK, y_copy_MN)
        else:
            self.sink.take(call, None, None)

    def end_step(self) -> None:
        """A forward pass has ended: every expected layer must have been seen exactly once."""
        missing = sorted(self.expected.difference(self._seen))
        if missing:
            raise CaptureError(
                f"{len(missing)} of {len(self.expected)} quantised linears did not run in step {self._step}, "
                f"the first is {missing[0]}",
                "the engine bypasses the tap on them (a fused or compiled path?)",
            )
        if self._step == 0:
            self.order = list(self._seen)
        self._last = None
