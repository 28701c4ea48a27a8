"""Staging a module's calls right where its kernel is called, as far as there is room.

What a short prefill waits for is this process, and what it costs there is memory that has not been looked at for a
while: every object of a module's own is such memory. So there is one a module, and all else is shared.
"""

from __future__ import annotations

from typing import Callable

import torch

from gptq_diff.capture.looks import Prepared, figures_of
from gptq_diff.capture.stage import AsStaged, Opening, Site, Stage


class Place:
    """Where on the stage a module's last call went: its next one, of as many rows, mostly goes there too.

    site: what its calls are; where the path depends on the call, `ask` says it after every one.
    opening, start, end: where, and from which position to which. x_values: of x. bias: what its product was given;
    adds: whether the copy does that. prepared: for the copy. call: as it is staged.
    """

    __slots__ = ("adds", "ask", "bias", "call", "end", "opening", "prepared", "site", "start", "x_values")

    def __init__(self, site: Site, ask: Callable[[], Site] | None = None) -> None:
        self.site = site
        self.ask = ask
        self.opening: Opening | None = None
        self.start = self.end = self.x_values = -1
        self.bias: torch.Tensor | None = None
        self.adds = False
        self.prepared: Prepared = None
        self.call: AsStaged

    def found(self, stage: Stage, x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
        """Whether the call can be staged now; if so this is its place."""
        parts, looker = self.site.parts, stage.looker
        if x.dtype is not stage.dtype or y.dtype is not stage.dtype or x.dim() != 2 or y.dim() != 2:
            return False
        looked = looker is not None and looker.takes(parts, x, y)
        figures = figures_of(parts) if looked else 0
        values = x.numel() + y.numel() if stage.copies or not looked else 0
        if not stage.has_room(values, figures) or (values > stage.most and not looked):
            return False
        assert stage.opening is not None
        self.adds = False
        if looked and looker is not None:
            self.adds = bias_N is not None and looker.adds(bias_N, y)
            self.prepared = stage.prepared(looker, parts, x, y, bias_N if self.adds else None)
        else:
            self.prepared = stage.opening.strip.view(stage.at, x, y)
        self.opening, self.start, self.end = stage.opening, stage.position, stage.after(values, figures)
        self.x_values, self.bias = x.numel(), bias_N
        self.call = (self.site, stage.at, x.shape, y.shape, True, looked, stage.told)
        return True


def put(stage: Stage, place: Place, x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
    """Stage a call's x [M, K] and y [M, N] and give y its bias; False, and nothing done, where there is no room.

    A call costs its launch and 2 microseconds (benchmarks/gpu/thirty_two/call_cost.py).
    """
    if (
        place.opening is not stage.opening or place.start != stage.position or place.bias is not bias_N
        or place.x_values != x.numel() or y.dtype is not stage.dtype
    ) and not place.found(stage, x, y, bias_N):  # fmt: skip
        return False
    if not stage.copy(place.prepared, x, y):
        return False
    stage.position = place.end
    call = place.call
    stage.calls.append(call if place.ask is None else (place.ask(), *call[1:]))
    if bias_N is not None and not place.adds:
        y.add_(bias_N)
    return True
