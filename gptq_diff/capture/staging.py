"""Copies of many kernel calls on a GPU: staged where the engine computes, shipped in chunks, never waited for.

A launch costs the engine's process more than the arithmetic in it: some 5 to 10 microseconds, against less than one for
the copy of a short prompt's activations. So a call costs one launch, which copies its x and y below each other into a
chunk; a full chunk costs a few more, on a stream of its own: one that finds its largest values, one that copies it to
pinned host memory (gptq_diff.capture.lanes). What is said of the calls is found out later, from there.

Memory: at most STAGED chunks of CHUNK_BYTES on the GPU, at most RING_BYTES in host memory; where a sink is slower than
that, the engine waits for it. A call larger than a chunk has a chunk of its size.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import gcd
from typing import Callable, NamedTuple

import torch

from gptq_diff.capture.bias_step import BiasStep
from gptq_diff.capture.call import Fused
from gptq_diff.capture.drain import Drain
from gptq_diff.capture.lanes import Lane, Shipped, lane_of
from gptq_diff.errors import CaptureError

CHUNK_BYTES = 32 * 2**20
STAGED = 4
RING_BYTES = 2**30


class Staged(NamedTuple):
    """One kernel call in a chunk (a tuple: a dataclass takes longer to make).

    parts, path, part, first: as in capture.call.Call, of all linears of the call.
    shape: of x, (M, K). out_rows: rows of y; as many as of x for a product, fewer for a step after it.
    offset: of its first value. own_x: whether x lies there, before y; else it is that of the call before.
    """

    parts: Fused
    path: str
    part: str
    first: int
    shape: tuple[int, ...]
    out_rows: int
    offset: int
    own_x: bool

    @property
    def unit(self) -> int:
        """What divides the columns of its tensors."""
        return gcd(self.shape[1], self.parts.unit) if self.own_x else self.parts.unit


@dataclass
class Chunk:
    """Some calls of one step, in order.

    values: the memory beside the engine that they are staged in; empty once it is used again. room: values it holds.
    width: what divides every tensor's columns. indexes: the places of every call's linears in the step.
    after: biases with their places, handed on after the calls.
    landed: the same values in host memory; None where that is not wanted.
    """

    step: int
    values: torch.Tensor
    room: int
    calls: list[Staged] = field(default_factory=list)
    used: int = 0
    width: int = 0
    indexes: list[tuple[int, ...]] = field(default_factory=list)
    after: list[tuple[int, BiasStep]] = field(default_factory=list)
    landed: torch.Tensor | None = None
    shipped: Shipped | None = None

    def arrive(self) -> None:
        """Wait until what was shipped of it is there."""
        if self.shipped is not None:
            self.shipped.wait()


class _Last(NamedTuple):
    """The input last seen: the engine's tensor (held, so that its address is not used again) and its copy."""

    x_MK: torch.Tensor
    copy: torch.Tensor


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""


class Staging:
    """Stages the calls of one prompt and ships them chunk by chunk; `settle` is given each in order.

    settle: called once a chunk is to be worked off; it has to wait for `shipped` first.
    number: gives every call of a chunk that is about to leave its places in the step.
    wants_tensors: whether all values land in host memory; else their largest alone.
    beside: whether a thread of its own calls `settle`.
    """

    def __init__(
        self, settle: Callable[[Chunk], None], number: Callable[[Chunk], None], *, wants_tensors: bool, beside: bool
    ) -> None:
        self._number = number
        self._wants = wants_tensors
        self._lane: Lane | None = None
        self._chunk: Chunk | None = None
        self._last: _Last | None = None
        self._away: deque[Chunk] = deque()  # whose memory on the GPU is to be used again, the oldest first
        self._step = -1
        self._changed: list[torch.Tensor] = []
        self.drain: Drain[Chunk] = Drain(settle, RING_BYTES, beside=beside)

    def begin_step(self, step: int) -> None:
        """What was shipped of the step before may be worked off."""
        self._step, self._last = step, None
        self.drain.wake()

    def add(
        self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str, part: str = "", first: int = 0
    ) -> None:
        """One launch that copies x and y, of one dtype and device; a call given the very tensor before shares its x."""
        last = self._last
        if last is not None and last.x_MK is x_MK:
            self._add_shared(last, parts, y_MN, path, part, first)
            return
        total = x_MK.numel() + y_MN.numel()
        chunk = self._chunk
        if chunk is None or chunk.used + total > chunk.room or chunk.values.dtype is not x_MK.dtype:
            chunk = self._next(total, x_MK)
        offset = chunk.used
        copy = chunk.values.narrow(0, offset, total)
        torch.cat((x_MK.reshape(-1), y_MN.reshape(-1)), out=copy)
        chunk.used = offset + total
        chunk.calls.append(Staged(parts, path, part, first, x_MK.shape, y_MN.shape[0], offset, own_x=True))
        self._last = _Last(x_MK, copy)

    def _add_shared(self, last: _Last, parts: Fused, y_MN: torch.Tensor, path: str, part: str, first: int) -> None:
        """Copy y alone, and ask whether x still is what was copied of it."""
        x_MK = last.x_MK
        bits = _BITS[x_MK.element_size()]
        copy_MK = last.copy[: x_MK.numel()].view(x_MK.shape)
        self._changed.append((x_MK.view(bits) != copy_MK.view(bits)).any())
        total, chunk = y_MN.numel(), self._chunk
        if chunk is None or chunk.used + total > chunk.room:
            last = self._last = _Last(x_MK, last.copy.clone())  # the chunk that it is a view of leaves
            chunk = self._next(total, x_MK)
        chunk.values.narrow(0, chunk.used, total).copy_(y_MN.reshape(-1))
        chunk.calls.append(Staged(parts, path, part, first, x_MK.shape, y_MN.shape[0], chunk.used, own_x=False))
        chunk.used += total

    def end_step(self, after: list[tuple[int, BiasStep]]) -> None:
        """Ship what is staged. CaptureError where an input had changed before another linear had read it."""
        if after and self._chunk is None:
            self._chunk = Chunk(self._step, torch.empty(0), 0)
        if self._chunk is not None:
            self._chunk.after = after
        self.ship()
        self._last = None
        changed, self._changed = self._changed, []
        if changed and any(torch.stack(changed).tolist()):
            raise CaptureError(
                "the engine changed a linear's input before another linear had read it",
                "this model's structure is not understood",
            )

    def copied(self) -> None:
        """Wait until all that was shipped is in host memory."""
        if self._away:
            self._away[-1].arrive()

    def _next(self, total: int, like: torch.Tensor) -> Chunk:
        """Ship the chunk at hand and give one that has room for that many values."""
        self.ship()
        if self._lane is None:
            self._lane = lane_of(like)
        values = self._memory(total, like.dtype)
        self._chunk = Chunk(self._step, values, len(values))
        return self._chunk

    def _memory(self, total: int, dtype: torch.dtype) -> torch.Tensor:
        """New while there is little of it, else that of the chunk that left first, once it has been read."""
        assert self._lane is not None
        usual = CHUNK_BYTES // dtype.itemsize
        while len(self._away) >= STAGED:
            old = self._away.popleft()
            assert old.shipped is not None
            if self._wants:
                old.shipped.before_reuse()
            else:
                old.arrive()
                if not bool(torch.isfinite(old.shipped.largest).all()):
                    old.landed = old.values.to("cpu", copy=True)  # how many are not finite is still to be counted
            values, old.values = old.values, torch.empty(0)
            if len(values) == usual and values.dtype is dtype and total <= usual:
                return values
        return self._lane.staged(max(total, usual), dtype)

    def ship(self) -> None:
        """Send the chunk at hand away, if there is any."""
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            return
        self._number(chunk)
        nbytes = 0
        if chunk.calls:
            assert self._lane is not None
            chunk.width = gcd(*(call.unit for call in chunk.calls))
            used = chunk.values.narrow(0, 0, chunk.used)
            if self._wants:
                nbytes = used.nbytes
                self.drain.room_for(nbytes)
                chunk.landed = self._lane.landing(chunk.used, used.dtype)
            chunk.shipped = self._lane.ship(used, chunk.width, chunk.landed)
            self._away.append(chunk)
        self.drain.put(chunk, nbytes)
