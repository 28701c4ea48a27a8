"""What a worker's log says at its end, fit for a sentence and for a report."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gptq_diff.text import one_line

REASON_LENGTH = 300
"""Characters of a log's line that are quoted."""
LOG_TAIL_BYTES = 64 * 1024
"""How far back a log is searched."""
LINES = 20
"""Lines of a log that a report keeps of a backend that failed."""

_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(: |$)")
_RANK = re.compile(r"^\[rank\d+\]: ", re.MULTILINE)


def last_line(log: Path, start: int = 0) -> str:
    """What a log says last, from byte `start` on, fit for a sentence; "" when it says nothing.

    After a Python traceback that is the line naming the exception: torch adds lines of advice below it, and the number
    of a rank in front of every line.
    """
    text = _RANK.sub("", _tail(log, start))
    before, traceback, trace = text.rpartition("Traceback (most recent call last):")
    if traceback and (before == "" or before.endswith(("\n", "\r"))):
        for line in trace.splitlines()[1:]:
            if _ERROR_LINE.match(line):
                return one_line(line, REASON_LENGTH)
    lines = (one_line(line, REASON_LENGTH) for line in reversed(text.splitlines()))
    return next((line for line in lines if line), "")


def log_end(log: Path, start: int = 0) -> tuple[str, ...]:
    """The last lines of a log from byte `start` on that say something, each cleaned and cut to REASON_LENGTH."""
    lines = (one_line(line, REASON_LENGTH) for line in _tail(log, start).splitlines())
    return tuple([line for line in lines if line][-LINES:])


def _tail(log: Path, start: int) -> str:
    try:
        with log.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(start, size - LOG_TAIL_BYTES))
            return f.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
