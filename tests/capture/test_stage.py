"""The stage that taps put calls on by themselves, and what they find made there for the next prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.capture import stage as stages
from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.call import Fused, Sink
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.tap import Tap
from gptq_diff.capture.ways import WAYS, Way
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.taps import Staged, Taps, Told
from gptq_diff.errors import CaptureError
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
    """Modules with taps that count which calls were told instead of staged."""

    def __init__(self, names: Sequence[str], *, shared: bool = False) -> None:
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

        return Told(seen, Staged(self.stage, lambda: site(parts, "p")))

    def prompt(self, inputs: Sequence[tuple[str, torch.Tensor]], sink: Sink, expected: int = 0) -> list[torch.Tensor]:
        """One step of those calls; what the modules gave, which is overwritten in the tap's sight."""
        layers = frozenset(f"{name}.{part}" for name in self.modules for part in "qk")
        self.told.clear()
        given = []
        with Tap(layers, sink) as self.tap, self.taps.in_place():
            self.tap.stage_in(self.stage)
            self.tap.begin_step(0, expected)
            for name, x in inputs:
                module = self.modules[name]
                y = module.quant_method.apply(module, x)
                given.append(y.clone())
                x.fill_(7)
                y.zero_()
            self.tap.end_step()
        return given


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


def inputs_of(names: Sequence[str], rows: int, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(name, torch.randn((rows, K), generator=draw)) for name in names]


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
        assert torch.equal(kept_x, x.reshape(-1, K))
        assert torch.equal(torch.cat([kept_q, kept_k], dim=1), rows)
        assert sink.calls[2 * place].x.absmax == float(x.abs().max())
        assert sink.calls[2 * place + 1].y.absmax == float(rows[:, 4:].abs().max())


def run(engine: Engine, inputs: list[tuple[str, torch.Tensor]], expected: int = 0) -> KeepingSink:
    """A prompt, checked."""
    sink, before = Copying(), [(name, x.clone()) for name, x in inputs]
    check(sink, before, engine.prompt(inputs, sink, expected))
    return sink


@pytest.mark.parametrize("way", WAYS)
def test_only_the_first_call_of_a_chunk_is_told(way: Way) -> None:
    """All others are staged where they are made, in whatever way; what the sink is given is the same."""
    names = "abcdef"
    engine = Engine(names)
    engine.stage.way = way
    run(engine, inputs_of(names, 3))
    assert engine.told == ["a"]


def test_any_order_will_do_and_another_one_for_the_next_prompt() -> None:
    """Nothing is expected of the order: it is that of the calls."""
    engine = Engine("abcd")
    for order in ("abcd", "dbca", "cabd"):
        run(engine, inputs_of(order, 2, seed=len(order)))


def test_prompts_of_other_lengths_share_the_memory_and_find_their_views() -> None:
    """One strip for all; the second prompt of a length makes no view."""
    engine = Engine("abcd")
    for rows in (3, 5, 3, 1, 5):
        run(engine, inputs_of("abcd", rows))
    assert engine.stage.made == 1
    (strip,) = engine.stage.free
    assert len(strip.views) == 4 * 3


def test_views_of_many_lengths_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MOST_VIEWS", 10)
    engine = Engine("abcd")
    for rows in range(1, 20):
        run(engine, inputs_of("abcd", rows))
    assert len(engine.stage.free[0].views) <= 10


def test_chunks_that_fill_up_and_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two calls a chunk and more chunks than there are strips."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2 * 3 * (K + N) * 4)
    names = [f"m{i}" for i in range(40)]
    engine = Engine(names)
    run(engine, inputs_of(names, 3))
    assert engine.told == names[::2]
    assert engine.stage.made == staging.STAGED


def test_what_is_known_to_come_makes_the_last_chunks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds half of what is left: the copy of the last one is what a prefill waits for."""
    a_call = 3 * (K + N)
    monkeypatch.setattr(staging, "LEAST_BYTES", 2 * a_call * 4)
    names = [f"m{i}" for i in range(32)]
    engine = Engine(names)
    run(engine, inputs_of(names, 3), expected=32 * a_call)
    assert [names.index(name) for name in engine.told] == [0, 16, 24, 28, 30]


@pytest.mark.parametrize("odd", ["another dtype", "three dimensions", "large"])
def test_a_call_that_cannot_be_staged_there_is_told_and_keeps_its_place(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another dtype, a batch dimension, more than a chunk holds: never lost, and the others go on."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 100 * (K + N) * 4)
    inputs = inputs_of("abcde", 3)
    x = inputs[2][1]
    changed = {"another dtype": x.half(), "three dimensions": x[None], "large": x.repeat(200, 1)}[odd]
    inputs[2] = ("c", changed)
    engine = Engine("abcde")
    run(engine, inputs)
    assert "c" in engine.told
    assert "b" not in engine.told


def test_modules_that_share_a_method_are_told_apart() -> None:
    engine = Engine("abc", shared=True)
    run(engine, inputs_of("cab", 2))


def test_a_module_that_runs_twice_is_refused() -> None:
    engine = Engine("ab")
    with pytest.raises(CaptureError, match=r"a\.q ran twice in step 0"):
        engine.prompt(inputs_of("aba", 2), Copying())


def test_a_prompt_that_failed_leaves_nothing_to_the_next() -> None:
    """Its memory may still be read by copies on their way: the next prompt has its own."""
    engine = Engine("ab")
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("a", 2), Copying())
    run(engine, inputs_of("ab", 2))


def test_statistics_alone_count_what_is_not_finite_after_the_memory_was_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values stay on the GPU then: those of a chunk with NaN are fetched before its strip goes to another."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 3 * (K + N) * 4)
    names = [f"m{i}" for i in range(20)]
    inputs = inputs_of(names, 3)
    inputs[2][1][1, 1] = float("nan")
    sink = Copying()
    sink.wants_tensors = False
    Engine(names).prompt(inputs, sink)
    counted = {call.layer: (call.x.nan, call.y.nan) for call in sink.calls if call.x.nan or call.y.nan}
    assert counted == {"m2.q": (1, 4), "m2.k": (1, 2)}
