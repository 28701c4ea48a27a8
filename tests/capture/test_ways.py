"""The ways of copying a call onto the stage: all give the same, and the fastest is taken."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from gptq_diff.capture import ways
from gptq_diff.capture.ways import WAYS, Views, Way, fastest, one_launch, views_of
from tests.engines.fake_gpu import FakeGpu


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["contiguous", "a view with gaps", "transposed"])
def test_the_bytes_are_those_of_the_call(way: Way, layout: str) -> None:
    """x, then y, row by row, NaN and infinities among them, whatever the strides are."""
    x_MK = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).half()
    x_MK[2, 3], x_MK[0, 0] = float("nan"), float("-inf")
    if layout == "a view with gaps":
        x_MK = x_MK[::2, 1:7]
    if layout == "transposed":
        x_MK = x_MK.t()
    y_MN = torch.randn(len(x_MK), 4, generator=torch.Generator().manual_seed(1)).half()
    memory = torch.zeros(200, dtype=torch.float16)
    total = x_MK.numel() + y_MN.numel()
    way(views_of(memory[7 : 7 + total], x_MK.shape, y_MN.shape), x_MK, y_MN)
    expected = x_MK.contiguous().numpy().tobytes() + y_MN.numpy().tobytes()
    assert memory[7 : 7 + total].numpy().tobytes() == expected
    assert not memory[:7].any()
    assert not memory[7 + total :].any()


def slow(seconds: float) -> Way:
    def way(views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
        time.sleep(seconds)

    return way


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_fastest_is_taken_on_a_gpu(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """By its own time, wherever it stands."""
    given: list[Any] = [slow(0.002), slow(0.002), slow(0.002)]
    given[place] = slow(0.0)
    monkeypatch.setattr(ways, "WAYS", tuple(given))
    monkeypatch.setattr(ways, "LAUNCHES", 3)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with FakeGpu():
        assert fastest(torch.device("cuda")) is given[place]


def test_on_a_cpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_seconds", lambda *_: pytest.fail("it was tried"))
    assert fastest(torch.device("cpu")) is one_launch
