"""Runs that ended before their time: what of them is whole, told by the captures on disk."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import replace

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import UsageError
from gptq_diff.jobs import capture_key
from gptq_diff.session.asked import BackendRecord, RunRecord

CAPTURED = frozenset({"captured", "finished"})
"""States of a run in which every backend has had its turn."""


@contextlib.contextmanager
def alone_with(run: RunDir) -> Iterator[None]:
    """Nobody else writes to the run meanwhile; UsageError when somebody does, or when it is still running."""
    with (run.root / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{run.root} is in use: its run has not ended", "wait until it has") from None
        yield


def as_far_as_it_came(run: RunDir, record: RunRecord) -> RunRecord:
    """The record of an interrupted run, completed: whole captures count, what is missing is a skipped backend."""
    if record.state in CAPTURED:
        return record
    keys = [capture_key(p.id, n) for p in run.prompts() for n in range(1, record.repeats + 1)]
    return replace(record, backends=tuple(_completed(run, b, keys) for b in record.backends))


def _completed(run: RunDir, backend: BackendRecord, keys: list[str]) -> BackendRecord:
    whole = tuple(key for key in keys if (run.capture(backend.name, key) / "manifest.json").is_file())
    if backend.failure is not None or len(whole) == len(keys):
        return replace(backend, finished=whole)
    why = f"the run was interrupted when {len(whole)} of its {len(keys)} captures were whole"
    return replace(backend, finished=whole, failure=why)
