"""Where a run is judged: on a GPU where this interpreter's torch has one with room, else on the CPU.

The verdict is the same: weights are dequantised exactly on either, products are summed in float64 on a GPU and in
float32 or better on the CPU, and the floors are the same formulas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.records import LayerSpec

CPU = torch.device("cpu")
BYTES_PER_WEIGHT = 24
"""What judging a linear takes of a GPU's memory at its peak: codes, zeros, scales by row, W, and rows."""
AHEAD = 2
"""Linears that are read and sent while one is judged."""


def judging_device(asked: str, layers: Sequence[LayerSpec]) -> torch.device:
    """The device of --device, "" and "auto" being a GPU if there is one; the CPU where there is none with room."""
    if asked == "cpu" or not torch.cuda.is_available():
        return CPU
    device = torch.device(asked if asked.startswith("cuda") else "cuda")
    largest = max((spec.in_features * spec.out_features for spec in layers), default=0)
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > BYTES_PER_WEIGHT * largest else CPU


def linears_on(
    device: torch.device, checkpoint: Checkpoint, specs: Sequence[LayerSpec]
) -> Iterator[tuple[LayerSpec, PackedLinear]]:
    """Every linear, in order, on that device; for a GPU the next ones are read and sent while one is worked on."""
    if device.type == "cpu":
        yield from ((spec, checkpoint.packed(spec.name)) for spec in specs)
        return
    with ThreadPoolExecutor(1) as reader:
        bring = _Bring(device)
        waiting: list[Future[_Brought]] = []
        todo = iter(specs)
        try:
            for spec in specs:
                while len(waiting) <= AHEAD and (following := next(todo, None)) is not None:
                    waiting.append(reader.submit(bring, checkpoint.packed(following.name)))
                yield spec, waiting.pop(0).result().arrived()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def given_back(device: torch.device) -> Iterator[None]:
    """Afterwards torch keeps none of the GPU's memory that is not in use: the next engine wants it."""
    try:
        yield
    finally:
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Brought(NamedTuple):
    """A linear on its way to the GPU; sent: the event after it."""

    linear: PackedLinear
    sent: Any

    def arrived(self) -> PackedLinear:
        """The linear, for whatever is launched from now on."""
        here = torch.cuda.current_stream(self.linear.qweight.device)
        here.wait_event(self.sent)
        for tensor in (self.linear.qweight, self.linear.qzeros, self.linear.scales, self.linear.g_idx):
            if tensor is not None:
                tensor.record_stream(here)
        return self.linear


class _Bring:
    """Reads a mapped linear into pinned memory and sends it from there, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, linear: PackedLinear) -> _Brought:
        """Starts it; reading is done when this returns, sending may not be."""
        with torch.cuda.stream(self._stream):
            brought = linear.moved(self._send)
            return _Brought(brought, self._stream.record_event())

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = torch.empty_like(tensor, pin_memory=True)
        return pinned.copy_(tensor).to(self._device, non_blocking=True)
