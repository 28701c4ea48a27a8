"""Which Python an environment is made with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.environments.recipes import Recipe
from gptq_diff.errors import UsageError

_ASK = "import sys; print(sys.executable); print(*sys.version_info[:3])"
_PATIENCE = 30.0
"""Seconds that an interpreter may take to say its version."""


@dataclass(frozen=True)
class Python:
    """An interpreter that was started and said its version, such as (3, 11, 7)."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"Python {'.'.join(map(str, self.version))} ({self.path})"


def find_python(recipe: Recipe, asked: str | None) -> Python:
    """The interpreter to make an environment with.

    asked: --python, a path or a name on PATH; None takes gptq-diff's own, or any found that the recipe works with.
    UsageError where there is none, or where the one asked for is none or of a version that the recipe cannot take.
    """
    if asked is not None:
        found = probe(asked)
        if found is None:
            raise UsageError(
                f"--python {asked} is no Python interpreter that can be started", "give the path of one, or python3.11"
            )
        if not recipe.takes(found.version):
            raise UsageError(
                f"{recipe.name} needs Python {_range(recipe)}, and --python {asked} is {_dotted(found.version)}",
                f"give another, such as --python python3.{recipe.pythons[0]}, or leave it out",
            )
        return found
    own = Python(sys.executable, sys.version_info[:3])
    if recipe.takes(own.version):
        return own
    for candidate in _candidates(recipe):
        found = probe(candidate)
        if found is not None and recipe.takes(found.version):
            return found
    raise UsageError(
        f"{recipe.name} needs Python {_range(recipe)}: this one is {_dotted(own.version)}, and no other was found",
        f"install one, for example with `uv python install 3.{recipe.pythons[1]}`, or give its path with --python",
    )


def probe(named: str) -> Python | None:
    """What the interpreter of that path or name says of itself; None where there is none or it does not start."""
    path = shutil.which(named)
    if path is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603  what the user named, or what PATH calls python3.N
            [path, "-I", "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.splitlines()
        return Python(str(Path(said[0])), tuple(int(part) for part in said[1].split()))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _candidates(recipe: Recipe) -> Iterator[str]:
    """Newest first: what PATH knows, then what uv has installed."""
    oldest, newest = recipe.pythons
    for minor in range(newest, oldest - 1, -1):
        yield f"python3.{minor}"
    uv = shutil.which("uv")
    if uv is not None:
        asked = [uv, "python", "find", "--no-project", f">=3.{oldest},<3.{newest + 1}"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=_PATIENCE, check=False)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return
        yield from done.stdout.splitlines()[:1]


def _range(recipe: Recipe) -> str:
    oldest, newest = recipe.pythons
    return f"3.{oldest} to 3.{newest}" if newest < 99 else f"3.{oldest} or newer"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
