"""What is tried again and after how long, and that a probe ends when its time is over."""

from __future__ import annotations

import pytest

from gptq_diff.server_probe.exchange import NoReply, TooSlow
from gptq_diff.server_probe.patience import Caller, OutOfTime
from tests.server_probe.in_hand import Given, reply


def caller(given: Given, timeout: float = 10.0, total: float = 100.0) -> Caller:
    return Caller(given, timeout, total, given.clock())


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30.0),
        ("Wed, 31 Dec 2025 00:00:30 GMT", 0.0),
        ("soon", 1.0),
        (None, 1.0),
    ],
)
def test_429_is_tried_again_when_the_server_says(retry_after: str | None, waits: float) -> None:
    """Seconds or a date; where it says nothing that can be read, a second."""
    given = Given(reply(429, retry_after=retry_after), reply(200))
    asked = caller(given)
    assert asked.call("POST", "u").status == 200
    assert given.slept == [waits]
    assert asked.waited == waits


def test_a_server_that_stays_busy_keeps_the_last_word() -> None:
    """Three tries, the pause doubled."""
    given = Given(reply(503), reply(502), reply(429))
    assert caller(given).call("POST", "u").status == 429
    assert given.slept == [1.0, 2.0]


def test_500_is_an_answer() -> None:
    """It says nothing about later."""
    given = Given(reply(500), reply(200))
    assert caller(given).call("POST", "u").status == 500


def test_a_broken_connection_is_tried_again() -> None:
    """Twice; then it is told."""
    given = Given(NoReply("dropped"), reply(200), NoReply("dropped"), NoReply("dropped"), NoReply("gone"))
    asked = caller(given)
    assert asked.call("POST", "u").status == 200
    with pytest.raises(NoReply, match="gone"):
        asked.call("POST", "u")


def test_a_slow_answer_is_not_tried_again_and_two_are_enough() -> None:
    """A server that hangs would cost its limit for each of twenty questions."""
    given = Given(TooSlow("x"), reply(200), TooSlow("x"), TooSlow("no whole answer within 10 s"))
    asked = caller(given)
    with pytest.raises(TooSlow):
        asked.call("POST", "u")
    asked.call("POST", "u")
    with pytest.raises(TooSlow):
        asked.call("POST", "u")
    with pytest.raises(OutOfTime, match="2 questions in a row got no whole answer within 10 s"):
        asked.call("POST", "u")


def test_the_limit_of_an_answer_shrinks_with_what_is_left() -> None:
    """So that the whole probe ends in time; then nothing more is asked."""
    given = Given(reply(200), reply(200), TooSlow("x"), seconds=4.0)
    asked = caller(given, timeout=5.0, total=10.0)
    asked.call("POST", "u")
    asked.call("POST", "u")
    with pytest.raises(OutOfTime, match="time for the whole probe, 10 s, is over"):
        asked.call("POST", "u")
    assert given.limits == [5.0, 5.0, 2.0]
    with pytest.raises(OutOfTime, match="is over"):
        asked.call("POST", "u")
    assert len(given.limits) == 3


def test_a_wait_longer_than_the_time_left_is_not_begun() -> None:
    """Its length is told instead."""
    given = Given(reply(429, retry_after="3600"))
    with pytest.raises(OutOfTime, match=r"come again in 3600 s, and the whole probe has 100 s left"):
        caller(given).call("POST", "u")
    assert given.slept == []
