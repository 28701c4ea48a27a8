"""Where output goes: JSON for programs to stdout, everything for people to stderr."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from gptq_diff.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_IN_LOGS = 120  # columns, where stderr is no terminal; Rich would take 80 and fold tables


def console(*, quiet: bool = False) -> Console:
    """A console on stderr that shows strings as they are: no markup, emoji codes or highlighting in them.

    quiet: print nothing.
    """
    from rich.console import Console  # a fifth of the time that --help takes, and --json needs none of it

    class OwnConsole(Console):
        def on_broken_pipe(self) -> None:
            # Rich would exit with 1, which means something else here (gptq_diff.cli.errors).
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    stderr = getattr(sys, "stderr", None)  # None where the program was started with it closed
    return OwnConsole(
        stderr=True,
        quiet=quiet,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if stderr is not None and stderr.isatty() else _WIDTH_IN_LOGS,
    )


def saying(screen: Console) -> Callable[[str], None]:
    """Prints lines that may hold anything, paths of another machine's run.json among it, one a line."""
    from rich.text import Text

    return lambda line: screen.print(Text(one_line(line)))


def print_json(value: object) -> None:
    """Write one JSON document to stdout; in ASCII, so that no locale can fail to print it. NaN is an error."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
