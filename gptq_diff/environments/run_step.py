"""Run one command of a recipe, with everything that it says in the environment's log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from gptq_diff.errors import GptqDiffError
from gptq_diff.log_end import last_line, log_end

GRACE_SECONDS = 5.0
"""How long an installer may take to end after SIGTERM, before SIGKILL."""
_PASSWORD = re.compile(r"//[^/\s@]*@")
"""Who signs in at a package index, and how: not for a log."""
# These would make pip install elsewhere, or a build see packages that are not the environment's.
_MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def run_step(command: list[str], directory: Path, log: Path, lock: int) -> str | None:
    """None when the command succeeded, else its last error, or what it said last.

    It runs in `directory`, in a process group of its own that is ended when this function is left in any way, and
    inherits the descriptor `lock`. GptqDiffError when it cannot be started.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as out:
        out.write(f"\n$ {_PASSWORD.sub('//', ' '.join(command))}\n".encode())
        out.flush()
        start = out.tell()
        try:
            process = subprocess.Popen(  # noqa: S603  a recipe's step
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=directory, env=environment,
                start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip
        except OSError as error:
            raise GptqDiffError(
                f"{command[0]} cannot be started: {error.strerror or error}",
                "remove the environment and create it again",
            ) from error
        try:
            code = process.wait()
        finally:
            _end(process)
    if code == 0:
        return None
    if code < 0:
        return f"{Path(command[0]).name} was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    said = [line for line in log_end(log, start) if line.lower().startswith("error:")]
    return said[-1] if said else last_line(log, start) or f"it ended with status {code} and said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """No process of the group is left afterwards; a second Ctrl-C only skips the time of grace."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
