"""Copies of many kernel calls on a GPU: staged where the engine computes, shipped in chunks, never waited for.

A launch costs the engine's process more than the arithmetic in it. So a call costs one, which looks at it and copies x
and y into a chunk (gptq_diff.capture.looks); a full chunk costs a few more, on a stream of its own, which bring it to
pinned host memory (gptq_diff.capture.lanes). What is said of the calls is found out later, from there.

Calls that nobody can look at are copied by torch's operations, in chunks of their own, whose largest values are found
when they leave. A large one costs the GPU more than its launches cost the process: where tensors are wanted, the
columns of every linear of its y are copied by themselves then, so that nobody has to part them in host memory.

Memory: at most STAGED chunks of CHUNK_BYTES on the GPU, at most RING_BYTES in host memory; where a sink is slower than
that, the engine waits for it. A call larger than a chunk has a chunk of its size. Where it is known what a step will
stage, its last chunks are ever smaller, since the copy of the last one is waited for.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from typing import Callable, NamedTuple

import torch

from gptq_diff.capture.bias_step import BiasStep
from gptq_diff.capture.bits import other_bits
from gptq_diff.capture.drain import Drain
from gptq_diff.capture.lanes import Find, Lane, Shipped, lane_of, largest_of
from gptq_diff.capture.looks import Looker, figures_of
from gptq_diff.capture.stage import AsStaged, Site, Stage
from gptq_diff.capture.strip import Strip
from gptq_diff.errors import CaptureError

CHUNK_BYTES = 128 * 2**20
STAGED = 5
RING_BYTES = 2**30
LEAST_BYTES = 8 * 2**20
"""Of the last chunk of a step."""
LARGE = 2**22
"""Values of x and y together; a larger call that is not looked at is told, and its linears are copied apart."""
FIGURES = 2**14
"""Of the calls of one chunk that are looked at."""


@dataclass
class Chunk:
    """Some calls of one step, in order.

    strip: the memory beside the engine that they are staged in; None once it is used again. used: values there.
    width: what divides every tensor's columns. after: biases, handed on after the calls.
    layers: the places of the linears of the step.
    landed: the same values in host memory; None where that is not wanted. looked: whether figures came of looks.
    dtype: of the values.
    """

    step: int
    strip: Strip | None = None
    calls: list[AsStaged] = field(default_factory=list)
    used: int = 0
    width: int = 0
    after: list[BiasStep] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)
    landed: torch.Tensor | None = None
    shipped: Shipped | None = None
    looked: bool = False
    dtype: torch.dtype | None = None

    @property
    def values(self) -> torch.Tensor:
        """What is staged, in host memory if it is there."""
        if self.landed is not None:
            return self.landed
        assert self.strip is not None, "what is needed of a chunk is kept before its strip is used again"
        return self.strip.values

    def arrive(self) -> None:
        """Wait until what was shipped of it is there."""
        if self.shipped is not None:
            self.shipped.wait()


class _Last(NamedTuple):
    """The input last seen here: the engine's tensor (held, so that its address is not used again) and its copy.

    calls: of the chunk, with it; another number means that calls came in between.
    """

    x_MK: torch.Tensor
    copy: torch.Tensor
    calls: int


class Staging:
    """Stages the calls of one prompt and ships them chunk by chunk; `settle` is given each in order.

    settle: called once a chunk is to be worked off; it has to wait for `shipped` first.
    number: gives every call of a chunk that is about to leave its places in the step.
    stage: where calls are put; others may put some there too, as far as there is room.
    wants_tensors: whether all values land in host memory; else their largest alone.
    beside: whether a thread of its own calls `settle`.
    expected: values that a whole step will stage, 0 where that is not known.
    """

    def __init__(
        self, settle: Callable[[Chunk], None], number: Callable[[Chunk], None], stage: Stage, *, wants_tensors: bool,
        beside: bool,
    ) -> None:  # fmt: skip
        self._number = number
        self._stage = stage
        self._wants = wants_tensors
        self._last: _Last | None = None
        self._away: deque[Chunk] = deque()  # whose memory on the GPU is to be used again, the oldest first
        self._step = -1
        self._newest: dict[bool, Shipped] = {}  # on either stream: whether figures went alone
        self._changed: list[torch.Tensor] = []
        self._gone = 0  # values of this step that have left
        self.expected = 0
        stage.most = LARGE if wants_tensors else sys.maxsize
        stage.copies = wants_tensors
        self.drain: Drain[Chunk] = Drain(settle, RING_BYTES, beside=beside)

    def begin_step(self, step: int, expected: int = 0) -> None:
        """What was shipped of the step before may be worked off."""
        self._step, self._last, self._gone, self.expected = step, None, 0, expected
        while self._away:
            self._reclaim(self._away.popleft())
        self.drain.wake_if_crowded()

    def add(self, site: Site, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
        """Copy x and y, of one dtype and device: one launch, for a large call that is not looked at one a linear more.

        A call given the very tensor before shares its x, unless it is looked at.
        """
        last, stage = self._last, self._stage
        if stage.looker is not None and stage.looker.takes(site.parts, x_MK, y_MN):
            self._look(stage.looker, site, x_MK, y_MN)
            return
        if last is not None and last.x_MK is x_MK and last.calls == len(stage.calls):
            self._add_shared(last, site, y_MN)
            return
        total = x_MK.numel() + y_MN.numel()
        if not stage.has_room(total, 0) or stage.dtype is not x_MK.dtype:
            self._next(total, x_MK)
        assert stage.strip is not None
        at = stage.at
        views = stage.strip.view(at, x_MK, y_MN)
        apart = total > stage.most and len(site.parts.widths) > 1
        if apart:
            views.parts[0].copy_(x_MK)
            _copy_apart(views.parts[1].view(-1), y_MN, site.parts.widths)
        else:
            stage.way(views, x_MK, y_MN)
        stage.at = at + total
        stage.calls.append((site, at, *x_MK.shape, *y_MN.shape, True, apart, 0))
        self._last = _Last(x_MK, views.flat, len(stage.calls))

    def _look(self, looker: Looker, site: Site, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
        """Look at a call, wherever its tensors lie."""
        stage, figures = self._stage, figures_of(site.parts)
        total = x_MK.numel() + y_MN.numel() if self._wants else 0
        if not stage.has_room(total, figures) or stage.dtype is not x_MK.dtype:
            self._next(total, x_MK, looked=True)
        assert stage.strip is not None
        kind, at = looker.kind(site.parts, x_MK.shape[1], x_MK.dtype), stage.at if self._wants else -1
        if not looker.look(kind, len(x_MK), x_MK, y_MN, stage.strip, at, stage.told, None):
            x_copy_MK, y_copy_MN = (t.clone(memory_format=torch.contiguous_format) for t in (x_MK, y_MN))
            done = looker.look(kind, len(x_MK), x_copy_MK, y_copy_MN, stage.strip, at, stage.told, None)
            assert done, "a copy lies as it has to"
        stage.calls.append((site, at, *x_MK.shape, *y_MN.shape, True, True, stage.told))
        stage.at, stage.told = stage.at + total, stage.told + figures
        self._last = None

    def _add_shared(self, last: _Last, site: Site, y_MN: torch.Tensor) -> None:
        """Copy y alone, and ask whether x still is what was copied of it."""
        x_MK, stage = last.x_MK, self._stage
        self._changed.append(other_bits(x_MK, last.copy[: x_MK.numel()].view(x_MK.shape)))
        total, kept = y_MN.numel(), last.copy
        if not stage.has_room(total, 0):
            kept = kept.clone()  # the chunk that it is a view of leaves
            self._next(total, x_MK)
        assert stage.strip is not None
        stage.strip.values.narrow(0, stage.at, total).copy_(y_MN.reshape(-1))
        stage.calls.append((site, stage.at, *x_MK.shape, *y_MN.shape, False, False, 0))
        stage.at += total
        self._last = _Last(x_MK, kept, len(stage.calls))

    def end_step(self, after: list[BiasStep], layers: dict[str, int]) -> None:
        """Ship what is staged; after, layers: as in Chunk.

        CaptureError where an input had changed before another linear had read it.
        """
        self.ship()
        if after:
            self.drain.put(Chunk(self._step, after=after, layers=layers), 0)
        self._last = None
        changed, self._changed = self._changed, []
        if changed and any(torch.stack(changed).tolist()):
            raise CaptureError(
                "the engine changed a linear's input before another linear had read it",
                "this model's structure is not understood",
            )

    def copied(self) -> None:
        """Wait until all that was shipped is in host memory."""
        for shipped in self._newest.values():
            shipped.wait()

    def stop(self) -> None:
        """All is worked off: the memory is the next prompt's."""
        self.drain.stop()
        while self._away:
            self._reclaim(self._away.popleft(), settled=True)
        self._stage.close()

    def abandon(self) -> None:
        """What waits is dropped, and so is the memory that copies may still be made of."""
        self.drain.stop()
        self._away.clear()
        self._stage.close()

    def _next(self, total: int, like: torch.Tensor, *, looked: bool = False) -> None:
        """Ship the chunk at hand and open one that has room for that many values; looked: and for figures."""
        self.ship()
        if self._stage.lane is None:
            self._stage.lane = lane_of(like)
        strip = self._memory(self._stage.lane, total, like.dtype, looked=looked)
        if strip.told is not None:
            strip.told.zero_()
        room = len(strip.values)
        if self._wants and self.expected:
            least = LEAST_BYTES // like.dtype.itemsize
            room = min(room, max(total, least, (self.expected - self._gone) // 2))
        self._stage.open(strip, room)

    def _memory(self, lane: Lane, total: int, dtype: torch.dtype, *, looked: bool) -> Strip:
        """New while there is little of it, else that of the chunk that left first, once it has been read."""
        stage, usual = self._stage, self._usual(dtype, looked=looked)
        while len(self._away) >= STAGED:
            self._reclaim(self._away.popleft())
        size = max(total, usual)
        while True:
            strip = stage.lowest(size, dtype, looked=looked) if size == usual else None
            if strip is not None:
                return strip
            if size:
                self._spare()
            try:
                values = lane.staged(size, dtype)
                told = lane.staged(FIGURES, torch.int32) if looked else None
            except torch.cuda.OutOfMemoryError:
                if self._away:
                    self._reclaim(self._away.popleft())  # fewer have to do
                elif stage.free:
                    stage.free.clear()  # of another kind
                else:
                    raise
                continue
            stage.made += 1
            return Strip(stage.made, values, told)

    def _spare(self) -> None:
        """Another strip is about to be made: of those that are free and of another kind only so many stay."""
        free, away = self._stage.free, sum(chunk.used > 0 for chunk in self._away)
        large = [strip for strip in free if len(strip.values)]
        for strip in large[: max(away + len(large) + 1 - STAGED, 0)]:
            free.remove(strip)

    def _usual(self, dtype: torch.dtype, *, looked: bool) -> int:
        """Values of a strip: none where looks tell all that is wanted."""
        return 0 if looked and not self._wants else CHUNK_BYTES // dtype.itemsize

    def _reclaim(self, old: Chunk, *, settled: bool = False) -> None:
        """Its strip may be used again; one of another size than usual is let go. settled: all was said of it."""
        strip, shipped = old.strip, old.shipped
        assert strip is not None
        assert shipped is not None
        if self._wants or old.looked:
            shipped.before_reuse()
        else:
            shipped.wait()
            if not settled and not bool(torch.isfinite(shipped.figures).all()):  # how many are not is to be counted yet
                old.landed = strip.values.to("cpu", copy=True)
        old.strip = None
        if len(strip.values) == self._usual(strip.values.dtype, looked=old.looked):
            self._stage.free.append(strip)

    def ship(self) -> None:
        """Send what is staged away, if there is anything."""
        stage = self._stage
        strip = stage.strip
        if strip is None or not stage.calls:
            return
        lane = stage.lane
        assert lane is not None
        chunk = Chunk(self._step, strip, stage.calls, stage.at, looked=stage.told_room > 0, dtype=stage.dtype)
        find: Find
        if strip.told is not None:
            find = partial(_known, strip.told.narrow(0, 0, stage.told))
        else:
            chunk.width = gcd(*{n for call in chunk.calls for n in (call[3], call[0].parts.unit)})
            find = partial(largest_of, width=chunk.width)
        last = self._last
        self._last = last._replace(calls=0) if last is not None and last.calls == len(stage.calls) else None
        stage.close()
        self._number(chunk)
        self._gone += chunk.used
        used, nbytes = chunk.values.narrow(0, 0, chunk.used), 0
        if self._wants:
            nbytes = used.nbytes
            self.drain.room_for(nbytes)
            chunk.landed = lane.landing(chunk.used, used.dtype)
        chunk.shipped = lane.ship(used, find, chunk.landed)
        self._newest[chunk.landed is None and chunk.looked] = chunk.shipped
        self._away.append(chunk)
        self.drain.put(chunk, nbytes)


def _known(figures: torch.Tensor, _staged: torch.Tensor) -> torch.Tensor:
    """Found before."""
    return figures


def _copy_apart(to: torch.Tensor, y_MN: torch.Tensor, widths: tuple[int, ...]) -> None:
    """Every linear's columns by themselves, one after the other."""
    at, rows = 0, y_MN.shape[0]
    for columns_MN in torch.split(y_MN, list(widths), dim=1):
        size = columns_MN.numel()
        to.narrow(0, at, size).view(rows, -1).copy_(columns_MN)
        at += size
