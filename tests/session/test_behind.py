"""The thread behind a run: its order, that it gives way, and how it ends. Events, no clocks."""

from __future__ import annotations

import threading
from typing import Callable

import pytest

from gptq_diff.errors import CaptureError
from gptq_diff.session.behind import Behind, GoOn, at_once

SOON = 60
"""Seconds after which what should happen has not."""


def names() -> list[str]:
    """Threads of this kind that are there."""
    return [t.name for t in threading.enumerate() if t.name.startswith("behind")]


class Steps:
    """A piece of work of many steps: each told before it is made, until somebody says that it is enough."""

    def __init__(self) -> None:
        self.started, self.enough, self.ended = (threading.Event() for _ in range(3))
        self.inside = False
        self.overlapped = False

    def __call__(self, go_on: GoOn) -> None:
        try:
            while not self.enough.is_set():
                go_on()
                self.overlapped |= self.inside
                self.started.set()
        finally:
            self.ended.set()


def test_pieces_are_done_in_order_and_waited_for() -> None:
    """All in one thread that is not the caller's; none is left afterwards."""
    story: list[tuple[int, bool]] = []
    caller = threading.current_thread()

    def piece(number: int) -> Callable[[GoOn], None]:
        return lambda go_on: story.append((number, threading.current_thread() is caller))

    with Behind() as behind:
        for number in range(5):
            behind.later(piece(number))
    assert story == [(number, False) for number in range(5)]
    assert names() == []


def test_at_once_is_here_and_now() -> None:
    """Where nothing is to be done behind."""
    where: list[threading.Thread] = []
    at_once(lambda go_on: where.append(threading.current_thread()))
    assert where == [threading.current_thread()]


def test_without_work_there_is_no_thread() -> None:
    """On a CPU nothing is given to it."""
    with Behind() as behind, behind.alone():
        assert names() == []


def test_it_rests_while_somebody_wants_to_be_alone() -> None:
    """Its steps never fall into that time, and it goes on afterwards."""
    steps = Steps()
    with Behind() as behind:
        behind.later(steps)
        assert steps.started.wait(SOON)
        for _ in range(20):
            with behind.alone():
                steps.inside = True
                steps.started.clear()
                assert not steps.started.wait(0.005)
                steps.inside = False
            assert steps.started.wait(SOON)
        steps.enough.set()
    assert not steps.overlapped


def test_what_has_not_begun_waits_too() -> None:
    """Given to it by somebody who is alone."""
    done = threading.Event()
    with Behind() as behind:
        with behind.alone():
            behind.later(lambda go_on: done.set())
            assert not done.wait(0.05)
        assert done.wait(SOON)


def test_the_first_failure_is_raised_and_the_rest_is_left_out() -> None:
    """As if it had been done where it was asked for."""
    story: list[str] = []

    def fail(go_on: GoOn) -> None:
        raise CaptureError("a tensor is damaged", "run again")

    with pytest.raises(CaptureError, match="a tensor is damaged"), Behind() as behind, behind.alone():
        behind.later(lambda go_on: story.append("before"))
        behind.later(fail)
    assert story == ["before"]
    assert names() == []


def test_an_interrupt_ends_the_work_at_its_next_step() -> None:
    """What waits behind it is never begun; the interrupt passes on."""
    steps, story = Steps(), []
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.later(steps)
        behind.later(lambda go_on: story.append("never"))
        assert steps.started.wait(SOON)
        raise KeyboardInterrupt
    assert steps.ended.is_set()
    assert story == []
    assert names() == []


def test_an_interrupt_ends_work_that_rests() -> None:
    """Somebody was alone when it came."""
    steps = Steps()
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.later(steps)
        assert steps.started.wait(SOON)
        with behind.alone():
            raise KeyboardInterrupt
    assert steps.ended.is_set()
    assert names() == []


def test_the_runs_own_failure_goes_before_the_threads() -> None:
    """What ended the run is what it says."""

    def fail(go_on: GoOn) -> None:
        raise CaptureError("a tensor is damaged", "run again")

    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.later(fail)
        raise KeyboardInterrupt
