"""An exchange that answers from a list, and a clock that only sleeping moves."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from gptq_diff.server_probe.exchange import Exchange, Reply
from gptq_diff.server_probe.patience import Clock

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def reply(status: int, body: bytes = b"", retry_after: str | None = None) -> Reply:
    return Reply(status, "application/json", body, retry_after, 0.0)


class Given(Exchange):
    """Gives the next of what it was given, or raises it; each takes `seconds` of its clock."""

    def __init__(self, *replies: Reply | Exception, seconds: float = 0.0) -> None:
        super().__init__()
        self.replies = list(replies)
        self.limits: list[float] = []
        self.slept: list[float] = []
        self.seconds = seconds
        self._time = 0.0

    def send(self, method: str, url: str, timeout: float, body: bytes | None = None) -> Reply:
        self.limits.append(timeout)
        self._time += self.seconds
        found = self.replies.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def clock(self) -> Clock:
        return Clock(lambda: self._time, self._sleep, lambda: START + timedelta(seconds=self._time))

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._time += seconds
