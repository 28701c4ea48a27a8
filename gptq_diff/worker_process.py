"""One worker as a process: started, told what to do, ended with all that descends from it.

It may be started early: then it imports its engine's packages, which takes half of a large engine's load, touches no
GPU, and waits for its spec.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gptq_diff.errors import BackendError
from gptq_diff.jobs import WorkerSpec
from gptq_diff.processes import MARK, Family

GRACE_SECONDS = 5.0
"""How long a worker may take to end after SIGTERM, before SIGKILL."""
CLEAR_SECONDS = 15.0
"""How long what a worker started may take to end after SIGKILL; giving back much GPU memory takes seconds."""


@dataclass(frozen=True)
class Load:
    """One engine load: the interpreter, the spec without its jobs' end, and what to pass on.

    python: interpreter to run. staged: directory for the front of its PYTHONPATH.
    log: file that takes the worker's output. timeout: seconds a backend may take, the load included; None is no limit.
    environment: variables to set for the worker.
    """

    python: Path
    staged: Path
    log: Path
    timeout: float | None
    environment: dict[str, str]
    spec: WorkerSpec


class WorkerProcess:
    """A worker of that load, running; what it is to do is in its spec, which `go` hands out.

    events: the file that it writes. further: the directory that it takes further jobs from.
    log_start: how long its log was before it began. process, family: it and all that descends from it.
    grace: seconds that it may take to end after SIGTERM; 0 for SIGKILL at once.
    """

    def __init__(self, load: Load, *, asks: bool = False, early: bool = False) -> None:
        self.grace = GRACE_SECONDS
        self._private = tempfile.TemporaryDirectory(prefix="gptq-diff-", ignore_cleanup_errors=True)
        place = Path(self._private.name)
        self.events, self.further, self._spec = place / "events.jsonl", place / "further", place / "spec.json"
        self.further.mkdir()
        (place / "cwd").mkdir()
        load.log.parent.mkdir(parents=True, exist_ok=True)
        self.log_start = load.log.stat().st_size if load.log.exists() else 0
        arguments = [str(self._spec)]
        if early:
            draft = place / "draft.json"
            replace(load.spec, parent=os.getpid()).write(draft)
            arguments.append(str(draft))
        else:
            self.go(load.spec, asks=asks)
        try:
            self.process, self.family = _started(load, arguments, place / "cwd")
        except BackendError:
            self._private.cleanup()
            raise

    def go(self, spec: WorkerSpec, *, asks: bool) -> None:
        """Hand out the spec, whole or not at all. asks: whether it is to ask for further jobs."""
        follow_up = str(self.further) if asks else ""
        part = self._spec.with_suffix(".part")
        replace(spec, events=str(self.events), parent=os.getpid(), follow_up=follow_up).write(part)
        part.replace(self._spec)

    def end(self) -> None:
        """Nothing that descends from the worker is left afterwards; a second Ctrl-C only skips the time of grace."""
        try:
            if self.process.poll() is None:
                self.family.look()
                if self.grace > 0:
                    self._signal_group(signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.process.wait(timeout=self.grace)
        finally:
            self._signal_group(signal.SIGKILL)
            self.process.wait()
            self.family.end(CLEAR_SECONDS)
            self._private.cleanup()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Early:
    """A worker that was started ahead of its load; it is taken over by that load, or ended.

    One that cannot be started is none: its load will say why. One that dies while it waits fails its load.
    """

    def __init__(self, load: Load) -> None:
        self._worker: WorkerProcess | None = None
        with contextlib.suppress(BackendError):
            self._worker = WorkerProcess(load, early=True)

    def take(self) -> WorkerProcess | None:
        """The worker, once."""
        taken, self._worker = self._worker, None
        return taken

    def end(self) -> None:
        """If nobody has taken it."""
        worker = self.take()
        if worker is not None:
            worker.end()


@contextlib.contextmanager
def worker_for(load: Load, *, asks: bool, early: Early | None) -> Iterator[WorkerProcess]:
    """A worker with that load's spec, ended when the context is left."""
    taken = early.take() if early is not None else None
    worker = WorkerProcess(load, asks=asks) if taken is None else taken
    try:
        if taken is not None:
            taken.go(load.spec, asks=asks)
        yield worker
    finally:
        worker.end()


def _started(load: Load, arguments: list[str], cwd: Path) -> tuple[subprocess.Popen[bytes], Family]:
    mark = secrets.token_hex(16)
    environment = {**os.environ, MARK: mark}
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(load.staged), *([inherited] if inherited else [])])
    environment.update(load.environment)
    with load.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                [str(load.python), "-m", "gptq_diff.worker", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            raise BackendError(f"the interpreter {load.python} cannot be started: {e.strerror or e}") from e
    return process, Family(process.pid, mark)
