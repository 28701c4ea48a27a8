"""Calls that are looked at where they are made: what the sink is given is what torch's copies would have given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.looks import HostLooker
from gptq_diff.capture.numbering import Known
from gptq_diff.capture.stage import Stage
from gptq_diff.capture.tap import Tap
from gptq_diff.errors import CaptureError
from tests.capture.toy_modules import Copying, Engine, K, N, inputs_of, run

HALF = torch.float16


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


def looking(names: Any, *, asked: bool = False) -> Engine:
    return Engine(names, asked=asked, looker=HostLooker())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [False, True])
def test_only_the_first_call_of_a_chunk_is_told(dtype: torch.dtype, *, asked: bool) -> None:
    engine = looking("abcdef", asked=asked)
    for seed in range(3):
        run(engine, inputs_of("abcdef", 3, seed, dtype))
        assert engine.told == ["a"]


def test_any_order_and_any_length_may_follow() -> None:
    """What was prepared for one place is not used for another."""
    engine = looking("abcd")
    for seed, (order, rows) in enumerate(
        [("abcd", 3), ("abcd", 5), ("dbca", 5), ("abcd", 3), ("cabd", 1), ("abcd", 5)]
    ):
        run(engine, inputs_of(order, rows, seed, HALF))
    assert engine.stage.made == 1


def test_chunks_that_fill_up_and_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By values, and by figures: a chunk that is full of either leaves."""
    names = [f"m{i}" for i in range(40)]
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2 * 3 * (K + N) * 2)
    engine = looking(names)
    for seed in range(3):
        run(engine, inputs_of(names, 3, seed, HALF))
        assert engine.told == names[::2]
    assert engine.stage.made == staging.STAGED
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(staging, "FIGURES", 4 * 9)  # of x and two linears
    engine = looking(names)
    for seed in range(3):
        run(engine, inputs_of(names, 3, seed, HALF))
        assert engine.told == names[::4]


@pytest.mark.parametrize("odd", ["another dtype", "three dimensions", "gaps", "large"])
def test_a_call_that_cannot_be_looked_at_there_is_told_and_keeps_its_place(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never lost, and the others go on."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 100 * (K + N) * 2)
    engine = looking("abcde")
    for seed in range(2):
        inputs = inputs_of("abcde", 3, seed, HALF)
        x = inputs[2][1]
        wide = torch.cat([x, x], dim=1)
        changed = {
            "another dtype": x.float(), "three dimensions": x[None], "gaps": wide[:, :K], "large": x.repeat(200, 1),
        }[odd]  # fmt: skip
        inputs[2] = ("c", changed)
        run(engine, inputs)
        assert "c" in engine.told
        assert "b" not in engine.told


def test_statistics_alone_take_no_memory_for_values_and_count_what_is_not_finite() -> None:
    names = [f"m{i}" for i in range(20)]
    engine = looking(names)
    for _ in range(2):
        inputs = inputs_of(names, 3, 0, HALF)
        inputs[2][1][1, 1], inputs[3][1][0, 0] = float("nan"), float("-inf")
        sink = Copying()
        sink.wants_tensors = False
        engine.prompt(inputs, sink)
        counted = {
            call.layer: (*call.x[1:], *call.y[1:]) for call in sink.calls if call.x.nonfinite or call.y.nonfinite
        }
        assert counted == {"m2.q": (1, 0, 4, 0), "m2.k": (1, 0, 2, 0), "m3.q": (0, 1, 0, 4), "m3.k": (0, 1, 0, 2)}
        finite = inputs_of(names, 3, 0, HALF)[5][1]
        assert [call.x.absmax for call in sink.calls if call.layer == "m5.k"] == [float(finite.abs().max())]
    assert [len(strip.values) for strip in engine.stage.free] == [0]


def test_tensors_and_figures_alone_by_turns() -> None:
    """Figures do not depend on it; each has a strip of its own, made once."""
    engine, figures = looking("abcd"), []
    for seed in range(6):
        sink = Copying()
        sink.wants_tensors = seed % 2 == 0
        engine.prompt(inputs_of("abcd", 3, seed // 2, HALF), sink)
        figures.append([(call.layer, call.x) for call in sink.calls])
    assert figures[::2] == figures[1::2]
    assert engine.stage.made == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("looker", [HostLooker(), None], ids=["looked at", "by torch"])
def test_a_bias_is_added_once_and_after_what_is_kept(looker: HostLooker | None, dtype: torch.dtype) -> None:
    """float16's by the look, others by torch; the first call, which is told, and those that are staged."""
    engine, bias = Engine("abc", looker=looker), torch.arange(N).to(dtype)
    for seed in range(3):
        sink, inputs = Copying(), inputs_of("abc", 3, seed, dtype)
        products = [x.sum(dim=-1, keepdim=True).repeat_interleave(N, dim=-1) + seed + 1 for _, x in inputs]
        given = engine.prompt(inputs, sink, bias=bias)
        for name, product, y in zip("abc", products, given):
            kept = [sink.tensors[0, f"{name}.{part}"][1] for part in "qk"]
            assert same_bits(torch.cat([k for k in kept if k is not None], dim=1), product)
            assert same_bits(y, product + bias)


def test_a_bias_that_is_another_one_is_not_taken_for_the_last() -> None:
    engine = looking("ab")
    for factor in (1, 2, 1):
        inputs = inputs_of("ab", 3, factor, HALF)
        products = [x.sum(dim=-1, keepdim=True).repeat_interleave(N, dim=-1) for _, x in inputs]
        bias = factor * torch.arange(N).half()
        engine.modules["a"].quant_method.calls = engine.modules["b"].quant_method.calls = -1
        given = engine.prompt(inputs, Copying(), bias=bias)
        assert all(same_bits(y, product + bias) for y, product in zip(given, products))


@pytest.mark.parametrize("order", ["abcb", "abca", "aabc"])
def test_a_module_that_runs_twice_is_refused_where_the_step_before_was_right(order: str) -> None:
    engine = looking("abc")
    for seed in range(2):
        run(engine, inputs_of("abc", 2, seed, HALF))
    with pytest.raises(CaptureError, match=r"\.q ran twice in step 0"):
        engine.prompt(inputs_of(order, 2, 0, HALF), Copying())
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("ab", 2, 0, HALF), Copying())
    run(engine, inputs_of("cab", 2, 0, HALF))


class Eights(HostLooker):
    """Takes multiples of eight alone, as the kernel on a GPU."""

    unit = 8


@pytest.mark.parametrize("wanted", [True, False], ids=["tensors", "figures alone"])
def test_calls_of_both_kinds_by_turns(wanted: bool) -> None:
    """Linears of 4 and 2 columns are no multiples of eight, so torch copies them between others that are looked at."""
    looker, draw = Eights(), torch.Generator().manual_seed(0)
    stage, known = Stage(), Known()
    stage.looker = looker
    for _ in range(3):
        sink, expected = Copying(), []
        sink.wants_tensors = wanted
        with Tap(frozenset(str(i) for i in range(9)), sink) as tap:
            tap.stage_in(stage, known)
            tap.begin_step(0)
            for i in range(9):
                width = 16 if i % 3 else 6
                x, y = (torch.randn((3, n), generator=draw).half() for n in (8, width))
                expected.append((str(i), float(x.abs().max()), float(y.abs().max()), y.clone()))
                tap.record(str(i), x, y, "p")
                y.zero_()
            tap.end_step()
        assert [(c.layer, c.x.absmax, c.y.absmax) for c in sink.calls] == [e[:3] for e in expected]
        for layer, _, _, y in expected if wanted else ():
            kept = sink.tensors[0, layer][1]
            assert kept is not None
            assert same_bits(kept, y)


def test_strips_of_several_kinds_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in one dtype after another: those that are free and of another kind make room."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 3 * (K + N) * 4)
    names = [f"m{i}" for i in range(20)]
    engine = looking(names)
    for dtype in (torch.float16, torch.float32, torch.bfloat16, torch.float16):
        run(engine, inputs_of(names, 3, 0, dtype))
        assert sum(len(strip.values) > 0 for strip in engine.stage.free) <= staging.STAGED


def test_figures_do_not_change_when_their_strip_is_used_again_in_inference_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Engines run in it, and views do not say there whose they are."""
    monkeypatch.setattr(staging, "FIGURES", 2 * 9)
    names = [f"m{i}" for i in range(40)]
    with torch.inference_mode():
        engine, sink = looking(names), Copying()
        sink.wants_tensors = False
        inputs = inputs_of(names, 3, 0, HALF)
        largest = [float(x.abs().max()) for _, x in inputs]
        engine.prompt(inputs, sink)
    assert [call.x.absmax for call in sink.calls[::2]] == largest
