"""How a command ends: every exception becomes one sentence on stderr and an exit code of contract.md.

An exit code of 1 means that a numeric failure was found, so nothing else may end with it: not a defect of this tool
(Python's own code for a traceback is 1), and not a reader that went away (Typer's code for that is 1 as well).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from typing import TextIO

import typer

from gptq_diff.errors import CannotJudge, GptqDiffError, UsageError
from gptq_diff.text import clean

INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, as a shell reports a program that writes into a closed pipe

# What the person who gave the path can mend: full or read-only disks, permissions, paths that are not what they seem.
_ABOUT_A_PATH = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)


def settle(error: BaseException) -> int:
    """Tell a person about the error, unless somebody has already, and return the exit code."""
    with contextlib.suppress(BrokenPipeError):  # stderr may be a closed pipe too
        code = _told(error)
        _let_go_of_stdout()
        return code
    return READER_GONE


def flush_stdout() -> None:
    """Write out what stdout still holds, so that a failure shows while it can still be told."""
    stdout: TextIO | None = getattr(sys, "stdout", None)  # None where the program was started with it closed
    if stdout is not None:
        stdout.flush()


def _told(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return _code_of(error)
    if isinstance(error, GptqDiffError):
        return say(error)
    if isinstance(error, KeyboardInterrupt):
        typer.echo("gptq-diff: interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    if isinstance(error, OSError) and error.errno in _ABOUT_A_PATH:
        where = f"{error.filename}: " if error.filename else ""
        return say(UsageError(f"{where}{error.strerror}", "Free some space, or give another path."))
    if isinstance(error, MemoryError):
        return say(CannotJudge("out of memory", "Close other programs, or give fewer prompts or a smaller model."))
    typer.echo(clean("".join(traceback.format_exception(error))), err=True)
    return say(CannotJudge("this is a defect of gptq-diff itself", "Please report it with the lines above."))


def say(error: GptqDiffError) -> int:
    """Print the error's sentence, and its hint on a line of its own; the error's exit code."""
    typer.echo(f"gptq-diff: {clean(str(error))}", err=True)
    if error.hint:
        typer.echo(f"  hint: {clean(error.hint)}", err=True)
    return error.exit_code


def _code_of(stop: SystemExit) -> int:
    """The code of an end that Typer or a command asked for; Typer's stand-ins for other endings are told apart."""
    if isinstance(stop.__context__, BrokenPipeError):
        return READER_GONE
    if isinstance(stop.__context__, typer.Abort):  # what Typer makes of EOFError, which a damaged file can raise too
        return say(CannotJudge("a file or standard input ended early"))
    if stop.code == INTERRUPTED:  # what Typer makes of KeyboardInterrupt
        typer.echo("gptq-diff: interrupted", err=True)
    if stop.code is None:
        return 0
    return stop.code if isinstance(stop.code, int) else CannotJudge.exit_code


def _let_go_of_stdout() -> None:
    """Point stdout at nothing where it cannot be written, or Python would try again at exit and end with 120."""
    try:
        flush_stdout()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
