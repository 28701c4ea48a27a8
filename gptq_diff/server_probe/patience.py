"""How long is waited, and how often a refusal is tried again: one budget for a whole probe."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from gptq_diff.errors import CannotJudge
from gptq_diff.server_probe.exchange import Exchange, NoReply, Reply, TooSlow

TRIES = 3
"""Of one question that is refused for now, or whose connection breaks."""

SLOW_IN_A_ROW = 2
"""So many answers in a row that did not come in time, and no more is asked."""

BUSY = frozenset((408, 425, 429, 502, 503, 504))
"""HTTP codes that say: later."""

_WAIT = 1.0
"""Seconds before the second try where the server names none; twice that before the third."""


class OutOfTime(CannotJudge):
    """The whole probe's time is over, or the server answers too slowly to go on."""


@dataclass(frozen=True)
class Clock:
    """Time, so that tests need none."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    utc: Callable[[], datetime] = lambda: datetime.now(timezone.utc)


@dataclass
class Caller:
    """Sends requests one at a time, waits where the server says so, and stops when the time is over.

    timeout: seconds for one exchange. total: seconds for all of them and the waits between.
    waited: seconds spent on being told to come later.
    """

    exchange: Exchange
    timeout: float
    total: float
    clock: Clock = field(default_factory=Clock)
    waited: float = 0.0

    def __post_init__(self) -> None:
        self._end = self.clock.now() + self.total
        self._slow = 0

    def call(self, method: str, url: str, body: bytes | None = None) -> Reply:
        """The server's answer, its last one where it kept refusing.

        NoReply: it gave none. OutOfTime: there is no time for another.
        """
        for left in reversed(range(TRIES)):
            reply = self._once(method, url, body, last=not left)
            if reply is None:
                self._wait(_WAIT * 2 ** (TRIES - 1 - left))
            elif reply.status not in BUSY or not left:
                return reply
            else:
                asked = _seconds(reply.retry_after, self.clock.utc())
                self._wait(_WAIT * 2 ** (TRIES - 1 - left) if asked is None else asked)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, url: str, body: bytes | None, *, last: bool) -> Reply | None:
        """One try; None where the connection broke and it is not the last."""
        left = self._left()
        try:
            reply = self.exchange.send(method, url, min(self.timeout, left), body)
        except TooSlow as error:
            self._slow += 1
            if left < self.timeout:
                raise OutOfTime(f"the time for the whole probe, {self.total:.3g} s, is over") from None
            if self._slow >= SLOW_IN_A_ROW:
                raise OutOfTime(f"{SLOW_IN_A_ROW} questions in a row got {error}") from None
            raise
        except NoReply:
            if last:
                raise
            return None
        self._slow = 0
        return reply

    def _wait(self, seconds: float) -> None:
        if seconds >= self._left():
            raise OutOfTime(
                f"the server asks to come again in {seconds:.0f} s, and the whole probe has {self._left():.0f} s left"
            )
        self.waited += seconds
        self.clock.sleep(seconds)

    def _left(self) -> float:
        left = self._end - self.clock.now()
        if left <= 0:
            raise OutOfTime(f"the time for the whole probe, {self.total:.3g} s, is over")
        return left


def _seconds(retry_after: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After asks for: a number, or a date (RFC 9110, 10.2.3); None where it says nothing."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        then = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return max(0.0, (then - now).total_seconds())
