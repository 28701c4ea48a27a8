"""The directory of a check: whose it is, whether it goes on where one was interrupted, and its check.json."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from gptq_diff.errors import UsageError
from gptq_diff.whole_file import write_whole

FILE = "check.json"
RUNNING, FINISHED = "running", "finished"


class CheckDir:
    """Paths below CHECK. A case's outcome and run lie in CASE/, the self-test's in self-test/CASE/."""

    def __init__(self, root: Path, lock: BinaryIO, *, resumed: bool) -> None:
        self.root = root
        self.resumed = resumed
        self._lock = lock

    @staticmethod
    def claim(root: Path, *, overwrite: bool) -> CheckDir:
        """A new or empty directory, one of a check that did not finish, or with `overwrite` any check's.

        UsageError for anything else, and for one that another check is at work in.
        """
        root = root.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            entries = [entry.name for entry in root.iterdir() if entry.name != "lock"]
            state = _state(root)
            if entries and state is None:
                raise UsageError(f"{root} is not empty, and no check of gptq-diff", "choose another --out")
            lock = _locked(root)
            if state == FINISHED and not overwrite:
                lock.close()
                raise UsageError(f"{root} already holds a finished check", "choose another --out, or --overwrite")
            resumed = state == RUNNING and not overwrite
            if not resumed:
                _clear(root)
            check = CheckDir(root, lock, resumed=resumed)
            check.write({"gptq_diff_check": 1, "state": RUNNING})
        except OSError as e:
            raise UsageError(f"{root} cannot be written: {e.strerror or e}", "choose another --out") from e
        return check

    def case(self, name: str) -> Path:
        """Where a case's outcome lies."""
        return self.root / "cases" / name

    def self_test(self, name: str) -> Path:
        """Where the self-test's outcome lies."""
        return self.root / "self-test" / name

    @property
    def logs(self) -> Path:
        """What the processes that run cases print."""
        return self.root / "logs"

    def write(self, values: dict[str, Any]) -> None:
        """check.json, whole or not at all."""
        write_whole(self.root / FILE, json.dumps(values, indent=1))

    def finish(self, values: dict[str, Any]) -> None:
        """check.json of a check that has come to its end."""
        self.write({"gptq_diff_check": 1, "state": FINISHED, **values})

    def release(self) -> None:
        """Let another check have it; the lock goes with this process in any case."""
        self._lock.close()


def _state(root: Path) -> str | None:
    """What its check.json says; None where it holds no check of ours."""
    try:
        raw = json.loads((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw.get("state") if isinstance(raw, dict) and "gptq_diff_check" in raw else None


def _locked(root: Path) -> BinaryIO:
    lock = (root / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError(f"another check is at work in {root}", "choose another --out") from None
    return lock


def _clear(root: Path) -> None:
    """What checks write; check.json goes last, since it says that the rest is ours."""
    for name in ("cases", "self-test", "logs"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / FILE).unlink(missing_ok=True)
