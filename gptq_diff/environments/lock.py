"""One process at a time in an environment.

The lock is held through a file descriptor that installers inherit: when gptq-diff is killed (kill -9) while pip goes
on, nobody else touches the environment before pip has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from gptq_diff.errors import GptqDiffError


@contextlib.contextmanager
def held(directory: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the environment's lock; the descriptor to hand down to installers.

    GptqDiffError where another gptq-diff is at work on it. Where only an installer is, left behind by one that was
    killed, `waiting` is called, and its end awaited. The lock's file lies beside the environment and stays there:
    removing it would let two processes hold "the" lock.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read()
            if _lives(owner):
                raise GptqDiffError(
                    f"another gptq-diff (process {owner}) is at work on {directory}", "wait until it has ended"
                ) from None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _lives(pid: str) -> bool:
    """Whether a process of that number is there; one whose number is not yet written is."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True
