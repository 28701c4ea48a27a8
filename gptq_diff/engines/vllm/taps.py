"""The tap on vLLM's kernel calls: `quant_method.apply` of every judged module, bias taken out and added afterwards.

Kernels add the bias in different places, some before they round. Given none, every kernel returns its own product;
the bias is added to that in its dtype, as gptq_gemm's method does by itself. For the others (Marlin, Machete, vLLM's
CPU kernel) this rounds once more than vLLM would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable

import torch
from torch import nn

from gptq_diff.capture.bias_step import runs_for, spread
from gptq_diff.capture.call import Fused
from gptq_diff.capture.looks import Look, figures_of
from gptq_diff.capture.stage import AsStaged, Site, Stage, Strip
from gptq_diff.capture.ways import Views, Way
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

    site: what they are; where the path depends on the call, a function that is asked after every one. parts: its
    linears.
    """

    stage: Stage
    site: Site | Callable[[], Site]
    parts: Fused


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

    strip, at, end, told, told_end: which, from and to where. x_shape, dtype: of its tensors. bias: what its product is
    given; adds: whether `copy` does that. copy: copies and looks, or says that it cannot. call: as it is staged, where
    its path does not depend on the call.
    """

    __slots__ = (
        "adds",
        "at",
        "bias",
        "call",
        "copy",
        "dtype",
        "end",
        "strip",
        "told",
        "told_end",
        "x_shape",
        "y_shape",
    )

    def __init__(self) -> None:
        self.strip: Strip | None = None
        self.at = self.end = -1
        self.told = self.told_end = 0
        self.dtype: torch.dtype | None = None
        self.bias: torch.Tensor | None = None
        self.adds = False
        self.copy: Look
        self.call: AsStaged

    def found(self, stage: Stage, parts: Fused, x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
        """Whether the call can be staged now; if so this is its place."""
        at, dtype, told, figures = stage.at, stage.dtype, stage.told, 0
        total = x.numel() + y.numel() if stage.copies or not stage.told_room else 0
        if total > stage.room - at or x.dtype is not dtype or y.dtype is not dtype or x.dim() != 2:
            return False
        self.adds = False
        if stage.told_room:
            looker, figures = stage.looker, figures_of(parts)
            if looker is None or told + figures > stage.told_room or not looker.takes(parts, x, y):
                return False
            self.adds = bias_N is not None and looker.adds(bias_N, y)
            self.copy = stage.look(looker, parts, x, y, bias_N if self.adds else None)
        elif total > stage.most or (stage.looker is not None and stage.looker.takes(parts, x, y)):
            return False  # told, which opens a chunk for looks
        else:
            self.copy = partial(_copied, stage.way, stage.views.get((at, x.shape, y.shape)) or stage.view(at, x, y))
        self.strip, self.at, self.end, self.dtype = stage.strip, at, at + total, dtype
        self.told, self.told_end, self.bias = told, told + figures, bias_N
        self.x_shape, self.y_shape = x.shape, y.shape
        return True

    def as_staged(self, site: Site) -> AsStaged:
        """The call, for the stage."""
        looked = self.told_end > self.told
        return site, self.at, self.x_shape, self.y_shape, True, looked, self.told


def _copied(way: Way, views: Views, x: torch.Tensor, y: torch.Tensor) -> bool:
    """By torch's operations, wherever x and y lie."""
    way(views, x, y)
    return True


Stager = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], bool]
"""Given x, y and the bias that y is to be given: whether the call was staged; y has its bias then."""


def stager(stage: Stage, site: Site | Callable[[], Site], parts: Fused) -> Stager:
    """Stages a call's x and y right here if there is room, and says whether it did.

    What a prefill waits for is this process, so nothing is done here that can be done before or later. All names are
    bound: a call costs its launch and 2 to 3 microseconds (benchmarks/gpu/thirty_two/call_cost.py).
    """
    ask = site if callable(site) else None
    place = _Place()

    def staged(x: torch.Tensor, y: torch.Tensor, bias_N: torch.Tensor | None) -> bool:
        again = place.at == stage.at and place.strip is stage.strip and place.told == stage.told
        if (
            not again or place.end > stage.room or place.told_end > stage.told_room
            or place.dtype is not y.dtype or place.bias is not bias_N or place.x_shape != x.shape
        ):  # fmt: skip
            if not place.found(stage, parts, x, y, bias_N):
                return False
            if not callable(site):
                place.call = place.as_staged(site)
        if not place.copy(x, y):
            return False
        stage.at, stage.told = place.end, place.told_end
        stage.calls.append(place.call if ask is None else place.as_staged(ask()))
        if bias_N is not None and not place.adds:
            y.add_(bias_N)
        return True

    return staged


def _never(_x: torch.Tensor, _y: torch.Tensor, _bias_N: torch.Tensor | None) -> bool:
    """Where calls are told."""
    return False


class _Bias:
    """A module's bias as it is added: where and of which dtype its product is."""

    __slots__ = ("_read", "_ready")

    def __init__(self, read: torch.Tensor | None) -> None:
        self._read = read
        self._ready: tuple[torch.Tensor, torch.Tensor] | None = None  # as it was given, as it is added

    def added_to(self, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The bias as read, if it was; else what the engine has: the same tensor for the same one."""
        source = bias if self._read is None else self._read
        if source.dtype is y.dtype and source.device == y.device:
            return source
        ready = self._ready
        if ready is None or ready[0] is not source or ready[1].dtype is not y.dtype or ready[1].device != y.device:
            ready = self._ready = (source, source.to(device=y.device, dtype=y.dtype))
        return ready[1]


def _tap(
    linear: FusedLinear, apply: Apply, told: Told, bias_read: torch.Tensor | None, of_bias: BiasTap | None
) -> Apply:
    """The module's `apply`, its calls seen."""
    module, seen, own_bias = linear.module, told.seen, _Bias(bias_read)
    name, due = linear.name, of_bias.due if of_bias is not None else set()
    there = told.staged
    staged = _never if there is None else stager(there.stage, there.site, there.parts)

    def tapped_apply(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if layer is not module:
            return apply(layer, x, bias)
        y = apply(layer, x, None)
        if bias is None:
            if not staged(x, y, None):
                seen(in_rows(x), in_rows(y))
            return y
        added = own_bias.added_to(y, bias)
        if not staged(x, y, added):
            seen(in_rows(x), in_rows(y))
            y.add_(added)
        if due and name in due and of_bias is not None:
            of_bias.look(apply, linear, x, bias)
        return y

    return tapped_apply


def in_rows(values: torch.Tensor) -> torch.Tensor:
    """Two dimensions, the last one kept; itself where it has two."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
