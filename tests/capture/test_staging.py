"""Copies that are staged, shipped and settled: their figures, their launches, and what memory they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.call import Call, Fused, Sink
from gptq_diff.capture.lanes import Find, HostLane, Shipped
from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Tap
from gptq_diff.errors import CaptureError
from tests.capture.captures import KeepingSink

INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


def plain(values: torch.Tensor) -> tuple[float, int, int]:
    """The largest finite absolute value by numpy, the NaN and the infinities."""
    found = np.abs(values.double().numpy())
    return float(found[np.isfinite(found)].max(initial=0.0)), int(np.isnan(found).sum()), int(np.isinf(found).sum())


@pytest.mark.parametrize("large", [1, 2**20], ids=["linears apart", "linears side by side"])
@pytest.mark.parametrize("wanted", [True, False], ids=["tensors", "figures alone"])
@pytest.mark.parametrize("chunk", [1, 200, 2**20], ids=["a call a chunk", "some calls", "all in one"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_figures_are_those_of_every_part_by_itself(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int, wanted: bool, large: int
) -> None:
    """Calls of several shapes in any order, NaN and infinities in some parts only, memory used again meanwhile."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(staging, "LARGE", large)
    draw, sink, expected = torch.Generator().manual_seed(0), KeepingSink(), []
    columns_by_layer: dict[str, torch.Tensor] = {}
    sink.wants_tensors = wanted
    shapes = [(3, 6, (4, 2, 2)), (3, 6, (8,)), (1, 12, (4, 2, 2))] * 4
    parts = [Fused(tuple(f"{i}.{j}" for j in range(len(shape[2]))), shape[2]) for i, shape in enumerate(shapes)]
    tap = Tap(frozenset(layer for part in parts for layer in part.layers), sink)
    tap.begin_step(0)
    for place, ((rows, inner, widths), part) in enumerate(zip(shapes, parts)):
        x_MK = torch.randn((rows, inner), generator=draw).to(dtype)
        y_MN = torch.randn((rows, sum(widths)), generator=draw).to(dtype)
        if place == 3:
            y_MN[1, 4], x_MK[0, 0] = NAN, -INF
        if place == 4:
            y_MN[2, 6], x_MK[2, 4] = -INF, NAN
        expected += [(plain(x_MK), plain(columns)) for columns in torch.split(y_MN, list(widths), dim=1)]
        columns_by_layer |= zip(part.layers, (c.clone() for c in torch.split(y_MN, list(widths), dim=1)))
        tap.record_fused(part, x_MK, y_MN, "p")
        x_MK.zero_()
        y_MN.zero_()
    tap.end_step()
    assert [(tuple(call.x), tuple(call.y)) for call in sink.calls] == expected
    for layer, columns in columns_by_layer.items() if wanted else ():
        kept = sink.tensors[0, layer][1]
        assert kept is not None
        assert torch.equal(kept.nan_to_num(nan=5.5), columns.nan_to_num(nan=5.5))


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that would start a kernel: all that are no view and no bare allocation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_call_costs_one_launch_and_a_step_a_number_that_does_not_grow() -> None:
    """What keeps the tap cheap on a GPU: 3 blocks and 30 take as many launches when they leave."""
    for blocks in (3, 30):
        parts = [Fused((f"{b}.q", f"{b}.k"), (4, 2)) for b in range(blocks)]
        tap = Tap(frozenset(layer for part in parts for layer in part.layers), NullSink())
        tap.begin_step(0)
        inputs = [(torch.ones(2, 8), torch.ones(2, 6)) for _ in parts]
        with Launches() as recording:
            for part, (x_MK, y_MN) in zip(parts, inputs):
                tap.record_fused(part, x_MK, y_MN, "p")
        assert recording.names == ["aten::cat.out"] * blocks
        with Launches() as ending:
            tap.end_step()
        assert ending.names == ["aten::linalg_vector_norm", "aten::clone"], "the clone stands for the way to the host"
        tap.close()


class CountingLane(HostLane):
    """How much memory of both kinds is asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.reused = 0

    def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        self.made.append(values)
        return super().staged(values, dtype)

    def ship(self, staged: torch.Tensor, find: Find, landing: torch.Tensor | None) -> Shipped:
        shipped = super().ship(staged, find, landing)
        lane = self

        class Watched(Shipped):
            figures = shipped.figures

            def wait(self) -> None:
                shipped.wait()

            def before_reuse(self) -> None:
                lane.reused += 1

        return Watched()


def one_step(names: list[str]) -> KeepingSink:
    """What comes of one call of each, the n-th of n in all values."""
    sink = KeepingSink()
    tap = Tap(frozenset(names), sink)
    tap.begin_step(0)
    for i, name in enumerate(names):
        tap.record(name, torch.full((1, 8), float(i)), torch.full((1, 6), -float(i)), "p")
    tap.end_step()
    return sink


def test_memory_beside_the_engine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls there are: a few chunks, used again only after what was read of them."""
    lane = CountingLane()
    monkeypatch.setattr(staging, "lane_of", lambda _: lane)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4 * 14)
    names = [str(i) for i in range(40)]
    sink = one_step(names)
    assert lane.made == [14] * staging.STAGED
    assert lane.reused == len(names) - staging.STAGED
    assert [call.x.absmax for call in sink.calls] == [float(i) for i in range(40)]


def test_a_call_larger_than_a_chunk_has_one_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt's gate and up are; the calls around it keep their place."""
    lane = CountingLane()
    monkeypatch.setattr(staging, "lane_of", lambda _: lane)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 100)
    sink = KeepingSink()
    tap = Tap(frozenset("abc"), sink)
    tap.begin_step(0)
    for name, rows in (("a", 1), ("b", 50), ("c", 1)):
        tap.record(name, torch.ones(rows, 8), torch.ones(rows, 6), "p")
    tap.end_step()
    assert lane.made == [25, 700, 25]
    assert [(call.layer, call.rows) for call in sink.calls] == [("a", 1), ("b", 50), ("c", 1)]


def test_a_gpu_without_room_for_more_strips_makes_do_with_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost; where there is no room for a single one, that is said."""

    class Full(HostLane):
        left = 2

        def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
            if not self.left:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            self.left -= 1
            return super().staged(values, dtype)

    lane = Full()
    monkeypatch.setattr(staging, "lane_of", lambda _: lane)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4 * 14)
    names = [str(i) for i in range(20)]
    sink = one_step(names)
    assert [call.x.absmax for call in sink.calls] == [float(i) for i in range(20)]
    tap = Tap(frozenset("a"), KeepingSink())
    tap.begin_step(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tap.record("a", torch.ones(1, 8), torch.ones(1, 6), "p")


class Slow(Sink):
    """Takes calls later, in whatever thread; fails at the one named."""

    wants_tensors = True
    later = True

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[Call] = []
        self.values: list[float] = []
        self.fails_at = fails_at

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        if call.layer == self.fails_at:
            raise CaptureError("the disk is full", "free some")
        self.calls.append(call)
        if x_MK is not None:
            self.values.append(float(x_MK[0, 0]))


def many(tap: Tap, names: list[str]) -> None:
    tap.begin_step(0)
    for i, name in enumerate(names):
        tap.record(name, torch.full((1, 8), float(i)), torch.ones(1, 8), "p")
    tap.end_step()


def test_nothing_is_worked_off_during_a_step_that_has_room() -> None:
    """Python's lock belongs to the engine then; when the tap is closed all is there, in order."""
    names, sink = [str(i) for i in range(20)], Slow()
    with Tap(frozenset(names), sink) as tap:
        many(tap, names)
        assert sink.calls == []
        assert tap.order == names
    assert [call.layer for call in sink.calls] == names
    assert tap.waited == 0


def test_the_engine_waits_where_the_ring_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host memory is bounded: with room for two calls the sink is waited for, and nothing is lost or mixed up."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 64)
    monkeypatch.setattr(staging, "RING_BYTES", 2 * 64)
    names, sink = [str(i) for i in range(20)], Slow()
    with Tap(frozenset(names), sink) as tap:
        many(tap, names)
    assert [call.layer for call in sink.calls] == names
    assert sink.values == [float(i) for i in range(20)]


def test_what_the_sink_raises_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the latest when the tap is closed; a full disk must not look like a whole capture."""
    names = [str(i) for i in range(20)]
    with pytest.raises(CaptureError, match="the disk is full"), Tap(frozenset(names), Slow("7")) as tap:
        many(tap, names)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 64)
    monkeypatch.setattr(staging, "RING_BYTES", 2 * 64)
    tap = Tap(frozenset(names), Slow("7"))
    with pytest.raises(CaptureError, match="the disk is full"), tap:
        many(tap, names)


def test_a_failing_engine_leaves_no_thread_at_work() -> None:
    """What waits is dropped when the engine fails within the tap."""
    sink = Slow()
    with pytest.raises(RuntimeError, match="engine"), Tap(frozenset("a"), sink) as tap:
        many(tap, ["a"])
        raise RuntimeError("engine")
    assert sink.calls == []
