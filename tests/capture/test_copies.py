"""Copies of kernel calls and their largest values, found together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptq_diff.capture import tap as taps
from gptq_diff.capture.copies import Copied, copied, largest_values
from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Fused, Tap

INF, NAN = float("inf"), float("nan")


def plain(values: torch.Tensor) -> float:
    """The largest absolute value by numpy, NaN if there is one."""
    return float(np.abs(values.double().numpy()).max(initial=0.0))


def a_call(draw: torch.Generator, rows: int, inner: int, widths: tuple[int, ...], dtype: torch.dtype) -> Any:
    x_MK = torch.randn((rows, inner), generator=draw).to(dtype)
    y_MN = torch.randn((rows, sum(widths)), generator=draw).to(dtype)
    return x_MK, y_MN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_figures_are_those_of_every_part_by_itself(dtype: torch.dtype) -> None:
    """Calls of several shapes, each shape several times and in any order, NaN and infinities in some parts only."""
    draw = torch.Generator().manual_seed(0)
    copies, expected = [], []
    for place, (rows, inner, widths) in enumerate([(3, 5, (4, 2, 1)), (3, 5, (7,)), (1, 9, (4, 2, 1))] * 4):
        x_MK, y_MN = a_call(draw, rows, inner, widths, dtype)
        if place == 3:
            y_MN[1, 4], x_MK[0, 0] = NAN, -INF
        if place == 4:
            y_MN[2, 6], x_MK[2, 4] = -INF, NAN
        with_x = place != 6
        flat = copied(x_MK if with_x else None, y_MN)
        copies.append(Copied(flat, rows, inner if with_x else 0, widths, rows))
        parts = torch.split(y_MN, list(widths), dim=1)
        expected.append((plain(x_MK) if with_x else None, tuple(plain(part) for part in parts)))
    found = largest_values(copies)
    np.testing.assert_equal([(one.x, one.y) for one in found], expected)


def test_a_copy_holds_what_was_there() -> None:
    """Whatever strides the tensors had, and whatever becomes of them."""
    draw = torch.Generator().manual_seed(1)
    x_MK, y_MN = (torch.randn((k, 3), generator=draw).t() for k in (8, 6))
    before = x_MK.clone(), y_MN.clone()
    copy = Copied(copied(x_MK, y_MN), 3, 8, (4, 2), 3)
    x_MK.zero_()
    y_MN.zero_()
    assert torch.equal(copy.x_copy(), before[0])
    assert [part.is_contiguous() for part in copy.y_parts()] == [True, True]
    assert torch.equal(torch.cat(copy.y_parts(), dim=1), before[1])


def test_nothing_has_no_largest_value() -> None:
    """No calls, no rows."""
    assert largest_values([]) == []
    empty = torch.empty((0, 4))
    found = largest_values([Copied(copied(empty, empty), 0, 4, (3, 1), 0)])
    assert [(one.x, one.y) for one in found] == [(0.0, (0.0, 0.0))]


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that would start a kernel: all that are no view and no bare allocation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_call_costs_one_launch_and_a_step_a_number_that_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the tap cheap on a GPU: 3 blocks and 30 take as many launches at their end."""
    monkeypatch.setattr(taps, "asks_later", lambda _: True)
    at_the_end = []
    for blocks in (3, 30):
        parts = [Fused((f"{b}.q", f"{b}.k"), (4, 2)) for b in range(blocks)]
        tap = Tap(frozenset(layer for part in parts for layer in part.layers), NullSink())
        tap.begin_step(0)
        inputs = [(torch.ones(2, 8), torch.ones(2, 6)) for _ in parts]
        with Launches() as recording:
            for part, (x_MK, y_MN) in zip(parts, inputs):
                tap.record_fused(part, x_MK, y_MN, "p")
        assert recording.names == ["aten::cat"] * blocks
        with Launches() as ending:
            tap.end_step()
        at_the_end.append(len(ending.names))
    assert at_the_end[0] == at_the_end[1] <= 8
