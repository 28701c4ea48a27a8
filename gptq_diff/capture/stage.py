"""What a tap on a kernel needs at hand when a call of a GPU is staged, and nothing else.

A call adds what is done here to the prefill, hundreds of times: so it is read and written by the taps themselves
(gptq_diff.capture.staging, gptq_diff.engines.vllm.taps) instead of through methods. It outlives a prompt, and with it
the memory and the views of it: the calls of the next prompt of as many tokens find theirs made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, NamedTuple

import torch

from gptq_diff.capture.call import Fused, stored_name
from gptq_diff.capture.lanes import Lane
from gptq_diff.capture.looks import Looker, Prepared, figures_of
from gptq_diff.capture.ways import Views, Way, one_launch, views_of

Copy = Callable[[Prepared, torch.Tensor, torch.Tensor], bool]
"""Copies x and y, looks at them, or both, as it was prepared; False where they do not lie as they have to."""
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
    openings: by the room that was given there.
    """

    __slots__ = ("number", "openings", "told", "values", "views")

    def __init__(self, number: int, values: torch.Tensor, told: torch.Tensor | None = None) -> None:
        self.number = number
        self.values = values
        self.told = told
        self.views: dict[Key, Views] = {}
        self.openings: dict[int, Opening] = {}

    def opened(self, room: int) -> Opening:
        """The same object for the same room."""
        opening = self.openings.get(room)
        if opening is None:
            if len(self.openings) >= MOST_VIEWS:
                self.openings.clear()
            opening = self.openings[room] = Opening(self, room, 0 if self.told is None else len(self.told))
        return opening

    def view(self, at: int, x_MK: torch.Tensor, y_MN: torch.Tensor) -> Views:
        """Of as many values from there on as x and y have: made now, or found."""
        found = self.views.get((at, x_MK.shape, y_MN.shape))
        if found is None:
            if len(self.views) >= MOST_VIEWS:
                self.views.clear()
            flat = self.values.narrow(0, at, x_MK.numel() + y_MN.numel())
            found = self.views[at, x_MK.shape, y_MN.shape] = views_of(flat, x_MK.shape, y_MN.shape)
        return found

    def let_go(self) -> None:
        """Its memory is given back; whoever still knows the strip finds it empty."""
        self.values, self.told = self.values.new_empty(0), None
        self.views.clear()
        self.openings.clear()


class Opening(NamedTuple):
    """A strip that calls go to: room for so many values, told_room for so many figures (0: calls are not looked at)."""

    strip: Strip
    room: int
    told_room: int


_AT = 40
"""Bits of a position that are its offset of values; figures lie above."""


class Stage:
    """Where the next call goes.

    opening: what is open; None where there is no room for any call. position: of the next call there. dtype: of values.
    calls: what has been staged there, in order. copy: copies one call's x and y, told what was prepared for its place.
    looker: looks at calls, and copies them where `copies` says so; None where torch's operations copy them, `way` says
    how. free: strips that nobody reads any more. most: values of the largest call that may be staged without being told
    if it is not looked at. lane: how chunks are shipped; it outlives a prompt, since memory of a stream of its own is
    found again there alone.
    """

    __slots__ = (
        "calls", "copies", "copy", "dtype", "free", "lane", "looker", "made", "most", "opening", "position", "way",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opening: Opening | None = None
        self.position = 0
        self.dtype: torch.dtype | None = None
        self.calls: list[AsStaged] = []
        self.copy: Copy = self._by_torch
        self.looker: Looker | None = None
        self.copies = True
        self.way: Way = one_launch
        self.free: list[Strip] = []
        self.made = 0
        self.most = 0
        self.lane: Lane | None = None

    @property
    def at(self) -> int:
        """Offset of the next call's first value."""
        return self.position & ((1 << _AT) - 1)

    @property
    def told(self) -> int:
        """Offset of the next call's first figure."""
        return self.position >> _AT

    @property
    def looks(self) -> bool:
        """Whether what is open is for calls that are looked at."""
        return self.opening is not None and self.opening.told_room > 0

    def after(self, values: int, figures: int) -> int:
        """The position behind a call of so many."""
        return self.position + values + (figures << _AT)

    def has_room(self, values: int, figures: int) -> bool:
        """For a call of so many, to be looked at where there are figures."""
        opening = self.opening
        if opening is None or bool(figures) is not bool(opening.told_room):
            return False
        return self.at + values <= opening.room and self.told + figures <= opening.told_room

    def open(self, strip: Strip, room: int) -> None:
        """Calls go there from now on, as far as those values."""
        self.opening, self.position, self.dtype, self.calls = strip.opened(room), 0, strip.values.dtype, []
        self.copy = self._by_torch if strip.told is None or self.looker is None else self.looker.look

    def close(self) -> None:
        """There is no room for any call."""
        self.opening, self.position, self.calls = None, 0, []

    def _by_torch(self, views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        self.way(views, x_MK, y_MN)
        return True

    def prepared(
        self, looker: Looker, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, bias_N: torch.Tensor | None
    ) -> Prepared:
        """For looks at calls like that one whose copies and figures go to the next free place."""
        assert self.opening is not None
        strip = self.opening.strip
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
