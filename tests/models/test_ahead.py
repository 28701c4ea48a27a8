"""Making in order, several at a time."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch

from gptq_diff.models.ahead import in_order


def test_what_is_made_comes_in_order_whoever_is_done_first() -> None:
    """The first task waits for the second: they are at work together, and still come one after the other."""
    second_done = threading.Event()

    def first() -> str:
        assert second_done.wait(10)
        return "first"

    def second() -> str:
        second_done.set()
        return "second"

    assert list(in_order([first, second], 2)) == ["first", "second"]


def test_no_more_is_held_than_there_are_threads() -> None:
    """Tasks are taken one by one, so that memory is bounded however many there are."""
    taken: list[int] = []

    def tasks() -> Any:
        for i in range(100):
            taken.append(i)
            yield partial(int, i)

    made = in_order(tasks(), 3)
    assert next(made) == 0
    assert len(taken) == 4
    assert list(made) == list(range(1, 100))


def test_a_failure_comes_out_and_the_rest_is_dropped() -> None:
    """A full disk or an interrupt must not leave the others at work; torch has its threads again."""
    before = torch.get_num_threads()

    def fails() -> int:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        list(in_order([fails, *[lambda: 1] * 50], 2))
    assert torch.get_num_threads() == before
