"""Remove an environment, and nothing that is not one of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable

from gptq_diff.environments.create import clear
from gptq_diff.environments.lock import held
from gptq_diff.environments.state import LOG_FILE, STATE_FILE, state_of
from gptq_diff.errors import UsageError


def remove(directory: Path, waiting: Callable[[], None]) -> None:
    """Remove it; where that is interrupted, what is left is still ours, unfinished, and can be removed or made again.

    UsageError for a directory that is not an environment of gptq-diff's; GptqDiffError where another gptq-diff is at
    work on it.
    """
    if directory.is_symlink() or state_of(directory) is None:
        what = "is no environment of gptq-diff's" if directory.exists() else "does not exist"
        raise UsageError(f"{directory} {what}, so it is not removed", "see gptq-diff env list, or give its --dir")
    with held(directory, waiting):
        state = state_of(directory)
        if state is None:
            return  # removed by another while this one waited
        replace(state, done=0, size=None).write(directory)
        clear(directory)
        (directory / LOG_FILE).unlink(missing_ok=True)
        (directory / STATE_FILE).unlink()
        directory.rmdir()
