"""How copies leave a GPU: on a stream of their own, into host memory that the GPU writes to by itself.

The engine's process only launches here and never waits; what was launched is known to be done by asking `Shipped`.
HostLane does the same in main memory at once: for tensors of a CPU, and for tests of all that stands on a lane.
"""

from __future__ import annotations

import abc
from typing import Any, Callable

import torch

Find = Callable[[torch.Tensor], torch.Tensor]
"""Finds figures of staged values, or knows them: one dimension, where the values are."""


class Shipped(abc.ABC):
    """One shipment on its way.

    figures: what was found of it, in host memory. It may be read, and so may the landing place, once `wait` has
    returned.
    """

    figures: torch.Tensor

    @abc.abstractmethod
    def wait(self) -> None:
        """Until all of it is in host memory; other threads go on meanwhile."""

    @abc.abstractmethod
    def before_reuse(self) -> None:
        """What the engine launches from now on may overwrite the staged values: it comes after they were read."""


class Lane(abc.ABC):
    """Where copies are staged and how they are shipped."""

    @abc.abstractmethod
    def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory beside the engine's tensors, flat."""

    @abc.abstractmethod
    def landing(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Host memory that shipments land in, flat."""

    @abc.abstractmethod
    def ship(self, staged: torch.Tensor, find: Find, landing: torch.Tensor | None) -> Shipped:
        """Find the figures of what is staged, and copy it all to `landing`, if given."""


class _There(Shipped):
    """A shipment that needed no way."""

    def __init__(self, figures: torch.Tensor) -> None:
        self.figures = figures

    def wait(self) -> None:
        """It is there."""

    def before_reuse(self) -> None:
        """It was read."""


class HostLane(Lane):
    """Main memory; everything is done when the call returns."""

    def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Main memory."""
        return torch.empty(values, dtype=dtype)

    def landing(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Main memory."""
        return torch.empty(values, dtype=dtype)

    def ship(self, staged: torch.Tensor, find: Find, landing: torch.Tensor | None) -> Shipped:
        """At once."""
        if landing is not None:
            landing.copy_(staged)
        return _There(find(staged).clone())  # what it may be a view of is used again


class _OnItsWay(Shipped):
    def __init__(self, figures: torch.Tensor, done: Any, engine: Any) -> None:
        self.figures = figures
        self._done = done
        self._engine = engine

    def wait(self) -> None:
        """Wait for the event behind the copies."""
        self._done.synchronize()

    def before_reuse(self) -> None:
        """The engine's stream waits for that event; its process does not."""
        self._engine.wait_event(self._done)


class CudaLane(Lane):
    """One NVIDIA GPU and a stream beside the engine's; pinned host memory, which torch keeps and hands out again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Of torch's allocator on that GPU."""
        return torch.empty(values, dtype=dtype, device=self._device)

    def landing(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        """Pinned."""
        return torch.empty(values, dtype=dtype, pin_memory=True)

    def ship(self, staged: torch.Tensor, find: Find, landing: torch.Tensor | None) -> Shipped:
        """After what the engine's stream was given so far, and beside what it will be given.

        Figures alone, which are there and few, go the engine's own way: that is fewer things to launch.
        """
        engine = torch.cuda.current_stream(self._device)
        if not len(staged) and landing is None:
            return _OnItsWay(self._sent(find(staged)), engine.record_event(), engine)
        self._beside.wait_stream(engine)
        with torch.cuda.stream(self._beside):
            figures = self._sent(find(staged))
            if landing is not None:
                landing.copy_(staged, non_blocking=True)
            done = self._beside.record_event()
        return _OnItsWay(figures, done, engine)

    def _sent(self, figures: torch.Tensor) -> torch.Tensor:
        """Where they will be in host memory, on the stream at hand."""
        return self.landing(len(figures), figures.dtype).copy_(figures, non_blocking=True)


def largest_of(values: torch.Tensor, width: int) -> torch.Tensor:
    """Largest absolute value of every `width` values in a row, in their dtype: one launch; NaN where there is one."""
    found: torch.Tensor = torch.linalg.vector_norm(values.view(-1, width), ord=float("inf"), dim=1)
    return found


def lane_of(t: torch.Tensor) -> Lane:
    """The lane for copies of tensors like this one."""
    return CudaLane(t.device) if t.device.type == "cuda" else HostLane()
