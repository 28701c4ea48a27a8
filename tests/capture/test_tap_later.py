"""The tap as on a GPU, where figures are fetched together: what the sink is told must not depend on it."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.bias_step import bias_step
from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Fused, Tap
from gptq_diff.errors import CaptureError
from gptq_diff.numerics.magnitude import Magnitude
from tests.capture.captures import KeepingSink

LAYERS = ("q", "k", "v", "a", "b", "o", "gate", "up", "down")


def one_prompt(tap: Tap) -> None:
    """Two steps of a block with biases: q, k, v share an input, gate and up another; NaN, inf, a buffer again."""
    draw = torch.Generator().manual_seed(0)

    def values(rows: int, columns: int) -> torch.Tensor:
        return torch.randn((rows, columns), generator=draw).to(torch.float16)

    for step, rows in enumerate((5, 1)):
        tap.begin_step(step)
        x, z = values(rows, 8), values(rows, 8)
        z[0, 3] = float("nan")
        y = torch.empty(rows, 4, dtype=torch.float16)
        for name in ("q", "k", "v"):
            tap.record(name, x, y.copy_(values(rows, 4)), "fast")
        tap.record_fused(Fused(("a", "b"), (3, 1)), values(rows, 8), y.copy_(values(rows, 4)), "fast")
        tap.record("o", values(rows, 4), values(rows, 8).fill_(float("-inf")), "fast", part="0")
        tap.record("o", values(rows, 4), values(rows, 8), "fast", part="1", first=4)
        for name in ("gate", "up"):
            tap.record(name, z, values(rows, 16).t().contiguous().t(), "slow")
        tap.record("down", values(rows, 16), values(rows, 8), "fast")
        if tap.asks_bias:  # two rows before the addition, one after it
            for name in ("q", "k", "v"):
                tap.record_bias(bias_step(name, values(2, 4), values(1, 4)))
        tap.end_step()


@pytest.mark.parametrize("limit", [1, 300, 2**28], ids=["every call", "between calls", "once a step"])
def test_the_sink_is_told_the_same(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Calls, order, figures, tensors and what is shared."""
    at_once, later = KeepingSink(), KeepingSink()
    now = Tap(frozenset(LAYERS), at_once)
    one_prompt(now)
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    monkeypatch.setattr(staging, "CHUNK_BYTES", limit)
    tap = Tap(frozenset(LAYERS), later)
    one_prompt(tap)
    assert later.calls == at_once.calls
    assert tap.order == now.order
    assert later.tensors.keys() == at_once.tensors.keys()
    for key, kept in at_once.tensors.items():
        for ours, theirs in zip(later.tensors[key], kept):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16)), key
                assert ours.is_contiguous()


def test_statistics_alone_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the engine writes to y right after the call."""
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    sink = NullSink()
    tap = Tap(frozenset({"a"}), sink)
    tap.begin_step(0)
    y = torch.tensor([[1.0, float("inf"), float("nan")]], dtype=torch.float16)
    tap.record("a", torch.ones(1, 2, dtype=torch.float16), y, "p")
    y.zero_()
    tap.end_step()
    assert sink.calls == []
    tap.close()
    assert (sink.calls[0].x, sink.calls[0].y) == (Magnitude(1, 0, 0), Magnitude(1, 1, 1))


@pytest.mark.parametrize(
    ("layers", "said"), [("b", "b@bias came without its linear in step 0"), ("aa", "a@bias ran twice in step 0")]
)
@pytest.mark.parametrize("staged", [True, False])
def test_an_odd_bias_is_refused(monkeypatch: pytest.MonkeyPatch, layers: str, said: str, staged: bool) -> None:
    """One of a linear that did not run, or a second one: not understood, whenever it is handed on."""
    monkeypatch.setattr(taps, "asks_later", lambda _: staged)
    tap = Tap(frozenset({"a"}), NullSink())
    tap.begin_step(0)
    tap.record("a", torch.ones(1, 2), torch.ones(1, 2), "p")
    for layer in layers:
        tap.record_bias(bias_step(layer, torch.ones(1, 2), torch.ones(1, 2)))
    with pytest.raises(CaptureError, match=said):
        tap.end_step()


def test_rows_are_told_in_the_order_of_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cache answered for some, the first call says how many rows the prefill has."""
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    tap = Tap(frozenset("abc"), NullSink())
    tap.begin_step(0)
    for name, rows in (("a", 3), ("b", 3), ("c", 1)):
        tap.record(name, torch.ones(rows, 2), torch.ones(rows, 2), "p")
    tap.end_step()
    assert list(tap.rows_seen.items()) == [(3, "a"), (1, "c")]


def test_an_input_that_changed_between_two_that_share_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would be judged on values that it was not given."""
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    tap = Tap(frozenset({"a", "b"}), KeepingSink())
    tap.begin_step(0)
    x, y = torch.ones(1, 2, dtype=torch.float16), torch.ones(1, 2, dtype=torch.float16)
    tap.record("a", x, y, "p")
    x.mul_(2)
    tap.record("b", x, y, "p")
    with pytest.raises(CaptureError, match="changed a linear's input before another linear had read it"):
        tap.end_step()


def test_a_call_of_another_dtype_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be copied together with the others is looked at once, with an input of its own; the order stays."""
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    sink = KeepingSink()
    tap = Tap(frozenset("abc"), sink)
    tap.begin_step(0)
    x, half, wide = (torch.full((1, 2), 3.0, dtype=d) for d in (torch.float16, torch.float16, torch.float32))
    tap.record("a", x, half, "p")
    tap.record("b", x, wide, "p")
    tap.record("c", x, half * 2, "p")
    tap.end_step()
    assert [(c.layer, c.shared_input, c.x.absmax, c.y.absmax) for c in sink.calls] == [
        ("a", None, 3, 3), ("b", None, 3, 3), ("c", "a", 3, 6),
    ]  # fmt: skip
    kept = sink.tensors[0, "b"][1]
    assert kept is not None
    assert kept.dtype == torch.float32
