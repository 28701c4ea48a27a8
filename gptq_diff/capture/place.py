"""Staging a module's calls right where its kernel is called, as far as there is room.

What a short prefill waits for is this process, and what it costs there is memory that has not been looked at for a
while: every object of a module's own is such memory. So there is one a module, and all else is shared.
"""

from __future__ import annotations

from typing import Callable

import torch

from gptq_diff.capture.looks import Kind, Looker, figures_of
from gptq_diff.capture.stage import Site, Stage


class Place:
    """What does not change from call to call of a module.

    site: what its calls are; where the path depends on the call, `ask` says it after every one.
    looker: that `kind` was made by; None where it does not take them. inner, columns: K and N. figures: of a call.
    bias: what its products were last given; adds: whether a look does that.
    """

    __slots__ = ("adds", "ask", "bias", "columns", "dtype", "figures", "inner", "kind", "looker", "site")

    def __init__(self, site: Site, ask: Callable[[], Site] | None = None) -> None:
        self.site = site
        self.ask = ask
        self.looker: Looker | None = None
        self.kind: Kind = None
        self.dtype: torch.dtype | None = None
        self.inner = self.columns = 0
        self.bias: torch.Tensor | None = None
        self.adds = False
        self.figures = figures_of(site.parts)

    def learned(self, looker: Looker, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """Whether that looker takes calls like this one; what it needs for them is at hand then."""
        if not looker.takes(self.site.parts, x_MK, y_MN):
            return False
        self.looker, self.dtype, self.inner, self.columns = looker, x_MK.dtype, x_MK.shape[1], y_MN.shape[1]
        self.kind = looker.kind(self.site.parts, self.inner, x_MK.dtype)
        return True


def put(stage: Stage, place: Place, x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
    """Stage a call's x [M, K] and y [M, N] and give y its bias; False, and nothing done, where that is not possible.

    What it costs is measured by benchmarks/gpu/thirty_two/call_cost.py.
    """
    strip, looker = stage.strip, stage.looker
    if strip is None:
        return False
    if looker is None or not stage.told_room:
        return _by_torch(stage, place, x, y, bias_N)
    if place.looker is not looker and not place.learned(looker, x, y):
        return False
    y_values, x_values, columns, inner = y.numel(), x.numel(), place.columns, place.inner
    rows, told = y_values // columns, stage.told
    told_end = told + place.figures
    if stage.copies:
        at = stage.at
        end = at + x_values + y_values
        if end > stage.room:
            return False
    else:
        at, end = -1, 0
    dtype = place.dtype
    if (
        told_end > stage.told_room or x_values != rows * inner or y_values != rows * columns
        or y.dtype is not dtype or x.dtype is not dtype or stage.dtype is not dtype
    ):  # fmt: skip
        return False
    if place.bias is not bias_N:
        place.bias, place.adds = bias_N, bias_N is not None and looker.adds(bias_N, y)
    added = bias_N if place.adds else None
    if not looker.look(place.kind, rows, x, y, strip, at, told, added):
        return False
    site = place.site if place.ask is None else place.ask()
    stage.calls.append((site, at, rows, inner, rows, columns, True, True, told))
    stage.at, stage.told = end, told_end
    if bias_N is not None and added is None:
        y.add_(bias_N)
    return True


def _by_torch(stage: Stage, place: Place, x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
    """The same by torch's operations; not what could be looked at, which is told and opens a chunk of its own."""
    strip, looker, dtype, values = stage.strip, stage.looker, stage.dtype, x.numel() + y.numel()
    if strip is None or values > stage.most or not stage.has_room(values, 0) or x.dim() != 2:
        return False
    if x.dtype is not dtype or y.dtype is not dtype or (looker is not None and place.learned(looker, x, y)):
        return False
    at = stage.at
    stage.way(strip.view(at, x, y), x, y)
    stage.at = at + values
    site = place.site if place.ask is None else place.ask()
    stage.calls.append((site, at, *x.shape, *y.shape, True, False, 0))
    if bias_N is not None:
        y.add_(bias_N)
    return True
