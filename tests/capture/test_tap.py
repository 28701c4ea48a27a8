from __future__ import annotations

import time

import pytest
import torch

from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Tap
from gptq_diff.errors import CaptureError
from gptq_diff.numerics.magnitude import Magnitude
from tests.capture.captures import KeepingSink

INF, NAN = float("inf"), float("nan")


def tap_on(*layers: str) -> tuple[Tap, KeepingSink]:
    sink = KeepingSink()
    tap = Tap(frozenset(layers), sink)
    tap.begin_step(0)
    return tap, sink


def rows(*values: float, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.tensor([values], dtype=dtype)


def test_a_call_is_told_with_its_place_and_shape() -> None:
    """Step, order of execution, path and M, K, N are those of the call."""
    tap, sink = tap_on("a", "b")
    tap.record("b", torch.ones(3, 4), torch.ones(3, 6), "fast")
    tap.record("a", torch.ones(3, 5), torch.ones(3, 7), "slow")
    tap.end_step()
    tap.begin_step(1)
    tap.record("b", torch.ones(1, 4), torch.ones(1, 6), "slow")
    found = [(c.step, c.index, c.layer, c.path, c.rows, c.in_features, c.out_features) for c in sink.calls]
    assert found == [(0, 0, "b", "fast", 3, 4, 6), (0, 1, "a", "slow", 3, 5, 7), (1, 0, "b", "slow", 1, 4, 6)]
    assert tap.order == ["b", "a"]


def test_what_the_engine_does_afterwards_changes_nothing() -> None:
    """Fused kernels overwrite their tensors; the tap keeps copies (nnsight#630)."""
    tap, sink = tap_on("a")
    x, y = rows(1, 2), rows(3, 4)
    tap.record("a", x, y, "p")
    x.zero_()
    y.zero_()
    kept_x, kept_y = sink.tensors[0, "a"]
    assert kept_x is not None and kept_y is not None
    assert (kept_x.tolist(), kept_y.tolist()) == ([[1, 2]], [[3, 4]])


def test_copies_are_contiguous() -> None:
    """Whatever strides an engine uses, the store can write them."""
    tap, sink = tap_on("a")
    tap.record("a", torch.ones(4, 3).t(), torch.ones(6, 3).t()[:, ::2], "p")
    assert all(t is not None and t.is_contiguous() for t in sink.tensors[0, "a"])


def test_a_shared_input_comes_once() -> None:
    """q, k and v get the same tensor: the later two name the first; the next other input is its own again."""
    tap, sink = tap_on("q", "k", "v", "o", "gate", "up")
    x, z = rows(1, 2), rows(5, 6)
    for name in ("q", "k", "v"):
        tap.record(name, x, rows(0), "p")
    tap.record("o", rows(1, 2), rows(0), "p")
    for name in ("gate", "up"):
        tap.record(name, z, rows(0), "p")
    assert [c.shared_input for c in sink.calls] == [None, "q", "q", None, None, "gate"]
    assert [sink.tensors[0, c.layer][0] is None for c in sink.calls] == [False, True, True, False, False, True]
    assert [c.x.absmax for c in sink.calls] == [2, 2, 2, 2, 6, 6]


@pytest.mark.parametrize("sink", [KeepingSink(), NullSink()])
def test_a_buffer_that_was_written_to_is_no_shared_input(sink: KeepingSink | NullSink) -> None:
    """The same address with other values is another input: engines reuse buffers and work in place."""
    tap = Tap(frozenset("ab"), sink)
    tap.begin_step(0)
    x = rows(1, 2)
    tap.record("a", x, rows(0), "p")
    x.mul_(10)
    tap.record("b", x, rows(0), "p")
    assert [(c.shared_input, c.x.absmax) for c in sink.calls] == [(None, 2), (None, 20)]


def test_an_input_full_of_nan_is_shared_like_any_other() -> None:
    """NaN is not equal to itself, but its bits are."""
    tap, sink = tap_on("a", "b")
    x = rows(NAN, -0.0, INF)
    tap.record("a", x, rows(0), "p")
    tap.record("b", x, rows(0), "p")
    assert [c.shared_input for c in sink.calls] == [None, "a"]


@pytest.mark.parametrize(
    "other",
    [lambda x: x[:1], lambda x: x.view(torch.bfloat16), lambda x: x.t(), lambda x: x.view(1, 4)],
    ids=["rows", "dtype", "strides", "shape"],
)
def test_another_view_of_the_same_memory_is_no_shared_input(other: object) -> None:
    """Address alone does not make two inputs the same."""
    tap, sink = tap_on("a", "b")
    x = torch.tensor([[1, 2], [3, 4]], dtype=torch.float16)
    tap.record("a", x, rows(0), "p")
    tap.record("b", other(x), rows(0), "p")  # type: ignore[operator]
    assert sink.calls[1].shared_input is None


def test_sharing_ends_with_the_step() -> None:
    """A decode step never refers to the prefill's tensors."""
    tap, sink = tap_on("a")
    x = rows(1)
    tap.record("a", x, rows(0), "p")
    tap.end_step()
    tap.begin_step(1)
    tap.record("a", x, rows(0), "p")
    assert sink.calls[1].shared_input is None


def test_a_layer_that_did_not_run_is_an_error() -> None:
    """A capture with a hole must not look whole: the count and the first name are told."""
    tap, _ = tap_on("a", "b", "c")
    tap.record("c", rows(1), rows(1), "p")
    with pytest.raises(CaptureError, match="2 of 3 quantised linears did not run in step 0, the first is a"):
        tap.end_step()


def test_a_layer_that_ran_twice_is_an_error() -> None:
    """Twice in one step, but not in two steps."""
    tap, _ = tap_on("a")
    for step in range(2):
        tap.begin_step(step)
        tap.record("a", rows(1), rows(1), "p")
        tap.end_step()
    with pytest.raises(CaptureError, match="a ran twice in step 1"):
        tap.record("a", rows(1), rows(1), "p")


def test_a_layer_nobody_expects_is_an_error() -> None:
    """It could not be judged, and nobody would miss it."""
    tap, _ = tap_on("a")
    with pytest.raises(CaptureError, match="b ran in step 0, and is none of the quantised linears"):
        tap.record("b", rows(1), rows(1), "p")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, -3.0, 2.0), Magnitude(3.0, 0, 0)),
        ((0.0, -0.0), Magnitude(0.0, 0, 0)),
        ((NAN, -5.0, INF, -INF, NAN), Magnitude(5.0, 2, 2)),
        ((INF, 4.0), Magnitude(4.0, 0, 1)),
        ((NAN,), Magnitude(0.0, 1, 0)),
        ((), Magnitude(0.0, 0, 0)),
    ],
)
def test_magnitudes_count_what_is_not_a_number(
    values: tuple[float, ...], expected: Magnitude, dtype: torch.dtype
) -> None:
    """The largest finite value, NaN and infinities apart; an empty tensor has none of them."""
    tap, sink = tap_on("a")
    t = torch.tensor(values, dtype=dtype).reshape(-1, 1)
    tap.record("a", t, t, "p")
    assert sink.calls[0].x == sink.calls[0].y == expected


def test_the_largest_half_is_finite() -> None:
    """65504 is no overflow, in either sign."""
    tap, sink = tap_on("a")
    tap.record("a", rows(65504, 1), rows(-65504, 1), "p")
    assert (sink.calls[0].x, sink.calls[0].y) == (Magnitude(65504, 0, 0), Magnitude(65504, 0, 0))


def test_the_cost_of_a_call_does_not_grow_with_their_number() -> None:
    """The last of 4000 layers costs what the first cost: looking a layer up is no search through a list."""
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(4000)]
    tap = Tap(frozenset(names), NullSink())
    tap.begin_step(0)
    x, y = rows(1), rows(1)
    times = []
    for name in names:
        started = time.perf_counter()
        tap.record(name, x, y, "p")
        times.append(time.perf_counter() - started)
    first, last = sorted(times[:1000])[500], sorted(times[-1000:])[500]
    assert last < 2 * first
