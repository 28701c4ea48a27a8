"""The tap on vLLM's kernel calls: `quant_method.apply` of every judged module, bias taken out and added afterwards.

Kernels add the bias in different places, some before they round. Given none, every kernel returns its own product;
the bias is added to that in its dtype, as gptq_gemm's method does by itself. For the others (Marlin, Machete, vLLM's
CPU kernel) this rounds once more than vLLM would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from torch import nn

from gptq_diff.capture.bias_step import runs_for, spread
from gptq_diff.capture.stage import AsStaged, Site, Stage, Strip
from gptq_diff.engines.vllm.modules import FusedLinear

Seen = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with x [M, K] and y [M, N] without bias, right after the kernel of one module."""
Apply = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class BiasTap:
    """Sees what vLLM's own call gives with the bias, on the first row alone, run once more for this.

    due: names of the modules whose bias is wanted in this prompt. seen: called with the module's record, the spread
    [3, N] of several runs without bias, and the median [1, N] of as many with it.
    """

    seen: Callable[[FusedLinear, torch.Tensor, torch.Tensor], None]
    due: set[str] = field(default_factory=set)

    def look(self, apply: Apply, linear: FusedLinear, x: torch.Tensor, bias: Any) -> None:
        """Run that module's kernel for it."""
        self.due.discard(linear.name)
        row = in_rows(x)[:1].contiguous()
        without, with_bias = (
            spread([in_rows(apply(linear.module, row, added)) for _ in range(runs_for(row))]) for added in (None, bias)
        )
        self.seen(linear, without, with_bias[:1])


@dataclass(frozen=True)
class Staged:
    """Where a module's calls may be staged right here, as far as there is room, instead of being told.

    site: what they are; where the path depends on the call, a function that is asked after every one.
    """

    stage: Stage
    site: Site | Callable[[], Site]


@dataclass(frozen=True)
class Told:
    """What is done with the calls of one module: told, or staged while that is possible."""

    seen: Seen
    staged: Staged | None = None


class Taps:
    """The taps of one load and kernel mode, made once: a prompt only puts them in place.

    told: what is done with a module's calls. biases: module name -> bias as read, before any shuffling.
    """

    def __init__(
        self, linears: Sequence[FusedLinear], biases: Mapping[str, torch.Tensor], told: Callable[[FusedLinear], Told],
        of_bias: BiasTap | None = None,
    ) -> None:  # fmt: skip
        by_method: dict[int, list[FusedLinear]] = {}
        for linear in linears:
            by_method.setdefault(id(linear.method), []).append(linear)
        self._taps: list[tuple[dict[str, Any], Apply]] = []  # a method's own attributes, and its tap
        for those in by_method.values():
            method, apply = those[0].method, those[0].method.apply
            for linear in those:  # a method that modules share has one tap above the other
                apply = _tap(linear, apply, told(linear), biases.get(linear.name), of_bias)
            self._taps.append((vars(method), apply))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Every kernel call of those modules inside is reported."""
        before = [own.get("apply") for own, _ in self._taps]
        try:
            for own, apply in self._taps:
                own["apply"] = apply
            yield
        finally:
            for (own, _), was in zip(self._taps, before):
                if was is not None:
                    own["apply"] = was
                else:
                    own.pop("apply", None)


class _Place:
    """Where on the stage a module's last call went: its next one, of as many rows, mostly goes there too.

    strip, at, end: which, from and to where. x_shape, y_shape, dtype: of its tensors. views: of that place.
    call: as it is staged, where its path does not depend on the call.
    """

    __slots__ = ("at", "call", "dtype", "end", "strip", "views", "x_shape", "y_shape")

    def __init__(self) -> None:
        self.strip: Strip | None = None
        self.at = self.end = -1
        self.dtype: torch.dtype | None = None
        self.call: AsStaged

    def found(self, stage: Stage, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether the call can be staged now; if so this is its place."""
        at, dtype, total = stage.at, stage.dtype, x.numel() + y.numel()
        if total > min(stage.room - at, stage.most) or x.dtype is not dtype or y.dtype is not dtype or x.dim() != 2:
            return False
        self.strip, self.at, self.end, self.dtype = stage.strip, at, at + total, dtype
        self.x_shape, self.y_shape = x.shape, y.shape
        self.views = stage.views.get((at, x.shape, y.shape)) or stage.view(at, x, y)
        return True

    def as_staged(self, site: Site) -> AsStaged:
        """The call, for the stage."""
        return site, self.at, self.x_shape, self.y_shape, True, False


def stager(stage: Stage, site: Site | Callable[[], Site]) -> Callable[[torch.Tensor, torch.Tensor], bool]:
    """A function that stages a call's x and y right here if there is room, and says whether it did.

    What a prefill waits for is this process, so nothing is done here that can be done before or later. All names are
    bound: a call costs its copy and 2 to 3 microseconds (benchmarks/gpu/thirty_two/call_cost.py).
    """
    ask = site if callable(site) else None
    place = _Place()

    def staged(x: torch.Tensor, y: torch.Tensor) -> bool:
        again = place.at == stage.at and place.strip is stage.strip and place.x_shape == x.shape
        if not again or place.end > stage.room or place.dtype is not y.dtype:
            if not place.found(stage, x, y):
                return False
            if not callable(site):
                place.call = place.as_staged(site)
        stage.way(place.views, x, y)
        stage.at = place.end
        stage.calls.append(place.call if ask is None else place.as_staged(ask()))
        return True

    return staged


def _never(_x: torch.Tensor, _y: torch.Tensor) -> bool:
    """Where calls are told."""
    return False


def _tap(
    linear: FusedLinear, apply: Apply, told: Told, bias_read: torch.Tensor | None, of_bias: BiasTap | None
) -> Apply:
    """The module's `apply`, its calls seen."""
    module, seen = linear.module, told.seen
    name, due = linear.name, of_bias.due if of_bias is not None else set()
    staged = _never if told.staged is None else stager(told.staged.stage, told.staged.site)

    def tapped_apply(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if layer is not module:
            return apply(layer, x, bias)
        y = apply(layer, x, None)
        if not staged(x, y):
            seen(in_rows(x), in_rows(y))
        if bias is None:
            return y
        if due and name in due and of_bias is not None:
            of_bias.look(apply, linear, x, bias)
        added = bias if bias_read is None else bias_read
        if added.dtype is not y.dtype or added.device != y.device:
            added = added.to(device=y.device, dtype=y.dtype)
        return y.add_(added)

    return tapped_apply


def in_rows(values: torch.Tensor) -> torch.Tensor:
    """Two dimensions, the last one kept; itself where it has two."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
