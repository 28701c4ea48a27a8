"""Where built models lie, and how a directory appears there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import platformdirs

from gptq_diff.errors import UsageError


def cache_root() -> Path:
    """The user's cache directory for gptq-diff ($XDG_CACHE_HOME/gptq-diff on Linux)."""
    return platformdirs.user_cache_path("gptq-diff")


@contextlib.contextmanager
def locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock that belongs to `path` among all processes of this user; a killed process lets go of it.

    Lock files stay in the cache directory: removing one would let two processes hold "the" lock.
    """
    locks = cache_root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    with (locks / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another gptq-diff that is making {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A directory to write in that becomes `directory` when the block ends well, and vanishes when it does not.

    To be used under `locked(directory)`. What a killed process left is removed first. An empty directory at the
    target is replaced, anything else there must have been dealt with before.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(directory)
    except OSError as error:
        raise UsageError(
            f"{directory} could not be written: {error.strerror or error}", "free some space, or give another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
