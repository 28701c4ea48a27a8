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
from gptq_diff.capture.place import Place, put
from gptq_diff.capture.stage import Site, Stage, site
from gptq_diff.engines.vllm.modules import FusedLinear

Seen = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with x [M, K] and y [M, N] without bias, right after the kernel of one module."""
Apply = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class BiasTap:
    """Sees what vLLM's own call gives with the bias, on the first row alone, run once more for this.

    due: names of the modules whose bias is wanted in this prompt; looked: of those that were asked.
    seen: called with the module's record, the spread [3, N] of several runs without bias, and the median [1, N] of as
    many with it.
    """

    seen: Callable[[FusedLinear, torch.Tensor, torch.Tensor], None]
    due: set[str] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)

    def look(self, apply: Apply, linear: FusedLinear, x: torch.Tensor, bias: Any) -> None:
        """Run that module's kernel for it."""
        self.due.discard(linear.name)
        self.looked.add(linear.name)
        row = in_rows(x)[:1].contiguous()
        without, with_bias = (
            spread([in_rows(apply(linear.module, row, added)) for _ in range(runs_for(row))]) for added in (None, bias)
        )
        self.seen(linear, without, with_bias[:1])


@dataclass(frozen=True)
class Staged:
    """Where a module's calls may be staged right here, as far as there is room, instead of being told.

    site: what they are; where their path depends on the call, `ask` says it after every one.
    """

    stage: Stage
    site: Site
    ask: Callable[[], Site] | None = None


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
                own = _Tapped(linear, apply, told(linear), biases.get(linear.name), of_bias)
                apply = partial(_tapped_apply, own)
            self._taps.append((vars(method), apply))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Every kernel call of those modules inside is reported."""
        before: list[tuple[dict[str, Any], Any]] = []
        try:
            for own, apply in self._taps:
                before.append((own, own.get("apply")))
                own["apply"] = apply
            yield
        finally:
            for own, was in before:
                if was is None:
                    del own["apply"]
                else:
                    own["apply"] = was


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


class _Tapped(Place):
    """One module with its tap; a place, so that a call finds all that is the module's own in one piece of memory.

    apply: what it had. seen: told its calls where they cannot be staged. own_bias: what is added.
    """

    __slots__ = ("apply", "linear", "module", "of_bias", "own_bias", "seen", "stage")

    def __init__(
        self, linear: FusedLinear, apply: Apply, told: Told, bias_read: torch.Tensor | None, of_bias: BiasTap | None
    ) -> None:
        staged = told.staged
        super().__init__(_NOTHING if staged is None else staged.site, None if staged is None else staged.ask)
        self.stage = Stage() if staged is None else staged.stage  # its own is never opened
        self.linear, self.module, self.apply, self.seen = linear, linear.module, apply, told.seen
        self.own_bias, self.of_bias = _Bias(bias_read), of_bias


_NOTHING = site(Fused((), ()), "")
"""What is never staged."""


def _tapped_apply(own: _Tapped, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A module's `apply`, its calls seen."""
    if layer is not own.module:
        return own.apply(layer, x, bias)
    y = own.apply(layer, x, None)
    if bias is None:
        if not put(own.stage, own, x, y, None):
            own.seen(in_rows(x), in_rows(y))
        return y
    added = own.own_bias.added_to(y, bias)
    if not put(own.stage, own, x, y, added):
        own.seen(in_rows(x), in_rows(y))
        y.add_(added)
    of_bias = own.of_bias
    if of_bias is not None and of_bias.due and own.linear.name in of_bias.due:
        of_bias.look(own.apply, own.linear, x, bias)
    return y


def in_rows(values: torch.Tensor) -> torch.Tensor:
    """Two dimensions, the last one kept; itself where it has two."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
