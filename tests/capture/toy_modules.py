"""Toy modules whose calls the taps stage by themselves, and a sink that keeps what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.call import Fused, Sink
from gptq_diff.capture.left_alone import same_bits
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

    spoils: ("x" or "y", name) of the tensors that it writes into right after the call. late: of those that it writes
    into when the step is nearly over. rotates: modules whose y it changes in place by its row's position, not at 0.
    asked: the path is asked for after every call.
    """

    def __init__(self, names: Sequence[str], *, shared: bool = False, asked: bool = False) -> None:
        self.spoils = {(what, name) for what in "xy" for name in names}
        self.late: set[tuple[str, str]] = set()
        self.rotates: set[str] = set()
        self.asked = asked
        self.modules: dict[str, Any] = {name: nn.Module() for name in names}
        method = Method()
        for module in self.modules.values():
            module.quant_method = method if shared else Method()
        self.stage, self.told = Stage(), list[str]()
        linears = [FusedLinear(name, module, ()) for name, module in self.modules.items()]
        self.taps = Taps(linears, {}, self._told)
        self.tap = Tap(frozenset(), Copying())

    def _told(self, linear: FusedLinear) -> Told:
        parts = Fused((f"{linear.name}.q", f"{linear.name}.k"), (4, 2))

        def seen(x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            self.told.append(linear.name)
            self.tap.record_fused(parts, x_MK, y_MN, "p")

        there = site(parts, "p")
        return Told(seen, Staged(self.stage, (lambda: there) if self.asked else there))

    def prompt(
        self, inputs: Sequence[tuple[str, torch.Tensor]], sink: Sink, expected: int = 0, names: Sequence[str] = (),
        step: int = 0,
    ) -> list[torch.Tensor]:  # fmt: skip
        """One step of those calls, of the modules or those named; what they gave. Some is overwritten in between."""
        layers = frozenset(f"{name}.{part}" for name in names or self.modules for part in "qk")
        self.told.clear()
        given, late = [], list[torch.Tensor]()
        with Tap(layers, sink) as self.tap, self.taps.in_place():
            self.tap.stage_in(self.stage)
            self.tap.begin_step(step, expected)
            for name, x in inputs:
                module = self.modules[name]
                y = module.quant_method.apply(module, x)
                given.append(y.clone())
                if name in self.rotates:
                    y.mul_(1 + step + torch.arange(len(y), dtype=y.dtype)[:, None])
                for what, tensor in (("x", x), ("y", y)):
                    if (what, name) in self.spoils:
                        tensor.fill_(7)
                    if (what, name) in self.late:
                        late.append(tensor)
            for tensor in late:
                tensor.fill_(9)
            self.tap.end_step()
        return given


def inputs_of(names: Sequence[str], rows: int, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(name, torch.randn((rows, K), generator=draw)) for name in names]


def check(
    sink: KeepingSink, inputs: Sequence[tuple[str, torch.Tensor]], given: Sequence[torch.Tensor], step: int = 0
) -> None:
    """The sink has those calls in that order, with the values that went in and came out."""
    assert [call.layer for call in sink.calls] == [f"{name}.{part}" for name, _ in inputs for part in "qk"]
    for place, ((name, x), y) in enumerate(zip(inputs, given)):
        kept_x, kept_q = sink.tensors[step, f"{name}.q"]
        _, kept_k = sink.tensors[step, f"{name}.k"]
        assert kept_x is not None
        assert kept_q is not None
        assert kept_k is not None
        rows = y.reshape(-1, N)
        assert same_bits(kept_x, x.reshape(-1, K))
        assert same_bits(torch.cat([kept_q, kept_k], dim=1), rows)
        if torch.isfinite(rows).all():
            assert sink.calls[2 * place].x.absmax == float(x.abs().max())
            assert sink.calls[2 * place + 1].y.absmax == float(rows[:, 4:].abs().max())


def run(engine: Engine, inputs: list[tuple[str, torch.Tensor]], expected: int = 0, step: int = 0) -> KeepingSink:
    """One step, checked."""
    sink, before = Copying(), [(name, x.clone()) for name, x in inputs]
    check(sink, before, engine.prompt(inputs, sink, expected, step=step), step)
    return sink
