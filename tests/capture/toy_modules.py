"""Toy modules whose calls the taps stage by themselves, and a sink that keeps what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.call import Fused, Sink
from gptq_diff.capture.looks import Looker
from gptq_diff.capture.numbering import Known
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.taps import Staged, Taps, Told
from tests.capture.captures import KeepingSink

K, N = 8, 6


class Copying(KeepingSink):
    """Keeps copies, since the memory is used again."""

    later = True

    def take(self, call: Any, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        super().take(call, *(None if t is None else t.clone() for t in (x_MK, y_MN)))


class Method:
    """A kernel: the sum of x in every column, and the number of the call."""

    calls = 0

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        y = x.sum(dim=-1, keepdim=True).repeat_interleave(N, dim=-1) + self.calls
        return y if bias is None else y + bias


class Engine:
    """Modules with taps that count which calls were told instead of staged.

    It writes into x and y right after every call. asked: the path is asked for after every call.
    """

    def __init__(
        self, names: Sequence[str], *, shared: bool = False, asked: bool = False, looker: Looker | None = None
    ) -> None:
        self.asked = asked
        self.modules: dict[str, Any] = {name: nn.Module() for name in names}
        method = Method()
        for module in self.modules.values():
            module.quant_method = method if shared else Method()
        self.stage, self.known, self.told = Stage(), Known(), list[str]()
        self.stage.looker = looker
        linears = [FusedLinear(name, module, ()) for name, module in self.modules.items()]
        self.taps = Taps(linears, {}, self._told)
        self.tap = Tap(frozenset(), Copying())

    def _told(self, linear: FusedLinear) -> Told:
        parts = Fused((f"{linear.name}.q", f"{linear.name}.k"), (4, 2))

        def seen(x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            self.told.append(linear.name)
            self.tap.record_fused(parts, x_MK, y_MN, "p")

        there = site(parts, "p")
        return Told(seen, Staged(self.stage, there, (lambda: there) if self.asked else None))

    def prompt(
        self, inputs: Sequence[tuple[str, torch.Tensor]], sink: Sink, expected: int = 0, names: Sequence[str] = (),
        bias: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """One step of those calls, of the modules or those named; what they gave, overwritten in the tap's sight."""
        layers = _layers_of(tuple(names or self.modules))
        self.told.clear()
        given = []
        with Tap(layers, sink) as self.tap, self.taps.in_place():
            self.tap.stage_in(self.stage, self.known)
            self.tap.begin_step(0, expected)
            for name, x in inputs:
                module = self.modules[name]
                y = module.quant_method.apply(module, x, bias)
                given.append(y.clone())
                x.fill_(7)
                y.zero_()
            self.tap.end_step()
        return given


@lru_cache
def _layers_of(names: tuple[str, ...]) -> frozenset[str]:
    """The same object for the same modules, as an engine has it."""
    return frozenset(f"{name}.{part}" for name in names for part in "qk")


def inputs_of(
    names: Sequence[str], rows: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[tuple[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(name, torch.randn((rows, K), generator=draw).to(dtype)) for name in names]


def check(sink: KeepingSink, inputs: Sequence[tuple[str, torch.Tensor]], given: Sequence[torch.Tensor]) -> None:
    """The sink has those calls in that order, with the values that went in and came out."""
    assert [call.layer for call in sink.calls] == [f"{name}.{part}" for name, _ in inputs for part in "qk"]
    for place, ((name, x), y) in enumerate(zip(inputs, given)):
        kept_x, kept_q = sink.tensors[0, f"{name}.q"]
        _, kept_k = sink.tensors[0, f"{name}.k"]
        assert kept_x is not None
        assert kept_q is not None
        assert kept_k is not None
        rows = y.reshape(-1, N)
        assert same_bits(kept_x, x.reshape(-1, K))
        assert same_bits(torch.cat([kept_q, kept_k], dim=1), rows)
        assert sink.calls[2 * place].x.absmax == float(x.abs().max())
        assert sink.calls[2 * place + 1].y.absmax == float(rows[:, 4:].abs().max())


def run(engine: Engine, inputs: list[tuple[str, torch.Tensor]], expected: int = 0) -> KeepingSink:
    """A prompt, checked."""
    sink, before = Copying(), [(name, x.clone()) for name, x in inputs]
    check(sink, before, engine.prompt(inputs, sink, expected))
    return sink
