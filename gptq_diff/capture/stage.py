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
from gptq_diff.capture.looks import Look, Looker, figures_of
from gptq_diff.capture.ways import Views, Way, one_launch, views_of

MOST_VIEWS = 4096
"""Of one strip, after which they are made anew: prompts of many lengths each have their own."""


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


AsStaged = tuple[Site, int, "tuple[int, ...]", "tuple[int, ...]", bool, bool, int]
"""One kernel call in a chunk: (site, offset of its first value, shape of x, shape of y, whether x lies there before y,
whether the columns of every linear of y lie by themselves, one after the other; offset of its figures, if it was looked
at).

Where x does not lie there, it is that of the call before. y of a step after a product has fewer rows than x.
"""


Key = tuple[int, "tuple[int, ...]", "tuple[int, ...]"]


class Strip:
    """Memory beside the engine's tensors, flat; views: those made of it so far, by offset and the shapes of x and y.

    told: int32, for the figures of calls that are looked at; None where calls are copied without.
    """

    __slots__ = ("number", "told", "values", "views")

    def __init__(self, number: int, values: torch.Tensor, told: torch.Tensor | None = None) -> None:
        self.number = number
        self.values = values
        self.told = told
        self.views: dict[Key, Views] = {}

    def let_go(self) -> None:
        """Its memory is given back; whoever still knows the strip finds it empty."""
        self.values, self.told = self.values.new_empty(0), None
        self.views.clear()


class Stage:
    """Where the next call goes.

    at: offset in the strip at hand of the first free value; room: values that it holds, 0 where there is none.
    told: offset of the first free figure; told_room: how many there are, 0 where calls are not looked at.
    looker: looks at calls, and copies them where `copies` says so; None where torch's operations copy them.
    dtype: of the values. views: the strip's. calls: what has been staged there, in order.
    free: strips that nobody reads any more. way: how x and y are copied there.
    most: values of the largest call that may be staged without being told.
    lane: how chunks are shipped; it outlives a prompt, since memory of a stream of its own is found again there alone.
    """

    __slots__ = (
        "at", "calls", "copies", "dtype", "free", "lane", "looker", "made", "most", "room", "strip", "told",
        "told_room", "views", "way",
    )  # fmt: skip

    def __init__(self) -> None:
        self.at = 0
        self.room = 0
        self.told = 0
        self.told_room = 0
        self.looker: Looker | None = None
        self.copies = True
        self.dtype: torch.dtype | None = None
        self.strip: Strip | None = None
        self.views: dict[Key, Views] = {}
        self.calls: list[AsStaged] = []
        self.free: list[Strip] = []
        self.made = 0
        self.most = 0
        self.lane: Lane | None = None
        self.way: Way = one_launch

    def open(self, strip: Strip, room: int) -> None:
        """Calls go there from now on, as far as those values."""
        self.strip, self.views, self.dtype = strip, strip.views, strip.values.dtype
        self.at, self.room, self.calls = 0, room, []
        self.told, self.told_room = 0, 0 if strip.told is None else len(strip.told)

    def close(self) -> None:
        """There is no room for any call."""
        self.strip, self.views, self.calls = None, {}, []
        self.room = self.told_room = 0

    def view(self, at: int, x_MK: torch.Tensor, y_MN: torch.Tensor) -> Views:
        """Made now, and found in `views` the next time."""
        assert self.strip is not None
        if len(self.views) >= MOST_VIEWS:
            self.views.clear()
        flat = self.strip.values.narrow(0, at, x_MK.numel() + y_MN.numel())
        made = self.views[at, x_MK.shape, y_MN.shape] = views_of(flat, x_MK.shape, y_MN.shape)
        return made

    def look(
        self, looker: Looker, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, bias_N: torch.Tensor | None
    ) -> Look:
        """A look at calls like that one whose copies and figures go to the next free place."""
        strip = self.strip
        assert strip is not None
        assert strip.told is not None
        to = strip.values.narrow(0, self.at, x_MK.numel() + y_MN.numel()) if self.copies else None
        return looker.prepared(parts, x_MK, y_MN, to, strip.told.narrow(0, self.told, figures_of(parts)), bias_N)

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
