"""What a tap on a kernel needs at hand when a call of a GPU is staged, and nothing else.

A call adds what is done here to the prefill, hundreds of times: so it is read and written by the taps themselves
(gptq_diff.capture.staging, gptq_diff.engines.vllm.taps) instead of through methods. It outlives a prompt, and with it
the memory and the views of it: the calls of the next prompt of as many tokens find theirs made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from gptq_diff.capture.call import Fused, stored_name
from gptq_diff.capture.lanes import Lane
from gptq_diff.capture.looks import Looker
from gptq_diff.capture.strip import Strip
from gptq_diff.capture.ways import Way, one_launch


class Site(NamedTuple):
    """What is the same in every call of one kernel: the linears that it computes, and as what; as in capture.call.Call.

    stored: the names that its linears' tensors are stored under.
    """

    parts: Fused
    path: str
    part: str
    first: int
    stored: tuple[str, ...]


@lru_cache(4096)
def site(parts: Fused, path: str, part: str = "", first: int = 0) -> Site:
    """The same object for the same kernel."""
    return Site(parts, path, part, first, tuple(stored_name(layer, part) for layer in parts.layers))


AsStaged = tuple[Site, int, int, int, int, int, bool, bool, int]
"""One kernel call in a chunk, as cheap to make as can be: (site, offset of its first value, -1 if nothing was copied;
rows and columns of x, rows and columns of y; whether x lies there before y, whether the columns of every linear of y
lie by themselves, one after the other; offset of its figures, if it was looked at).

Where x does not lie there, it is that of the call before. y of a step after a product has fewer rows than x.
"""


class Stage:
    """Where the next call goes.

    strip: that is open; None where there is no room for any call. at: offset of the next call's first value there;
    room: values that may go there. told: offset of its first figure; told_room: how many there is room for, 0 where
    calls are not looked at. dtype: of the values. calls: what has been staged there, in order.
    looker: looks at calls, and copies them where `copies` says so; None where torch's operations copy them, `way` says
    how. free: strips that nobody reads any more. most: values of the largest call that may be staged without being told
    if it is not looked at. lane: how chunks are shipped; it outlives a prompt, since memory of a stream of its own is
    found again there alone.
    """

    __slots__ = (
        "at", "calls", "copies", "dtype", "free", "lane", "looker", "made", "most", "room", "strip", "told",
        "told_room", "way",
    )  # fmt: skip

    def __init__(self) -> None:
        self.strip: Strip | None = None
        self.at = self.room = self.told = self.told_room = 0
        self.dtype: torch.dtype | None = None
        self.calls: list[AsStaged] = []
        self.looker: Looker | None = None
        self.copies = True
        self.way: Way = one_launch
        self.free: list[Strip] = []
        self.made = 0
        self.most = 0
        self.lane: Lane | None = None

    def has_room(self, values: int, figures: int) -> bool:
        """For a call of so many, to be looked at where there are figures."""
        if self.strip is None or bool(figures) is not bool(self.told_room):
            return False
        return self.at + values <= self.room and self.told + figures <= self.told_room

    def open(self, strip: Strip, room: int) -> None:
        """Calls go there from now on, as far as those values."""
        self.strip, self.dtype, self.calls = strip, strip.values.dtype, []
        self.at, self.room, self.told, self.told_room = 0, room, 0, 0 if strip.told is None else len(strip.told)

    def close(self) -> None:
        """There is no room for any call."""
        self.strip, self.calls = None, []
        self.at = self.room = self.told = self.told_room = 0

    def lowest(self, values: int, dtype: torch.dtype, *, looked: bool) -> Strip | None:
        """A free strip of exactly that size, always the same one where there are several; None where there is none.

        looked: whether it has to have room for figures, or must have none.
        """
        fitting = [
            strip
            for strip in self.free
            if len(strip.values) == values and strip.values.dtype is dtype and (strip.told is not None) is looked
        ]
        if not fitting:
            return None
        found = min(fitting, key=lambda strip: strip.number)
        self.free.remove(found)
        return found
