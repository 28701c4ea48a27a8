"""Compile packs, each in a process of its own, several at once; nothing half is left, however it ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gptq_diff.errors import GptqDiffError
from gptq_diff.log_end import last_line
from gptq_diff.processes import MARK, Family
from gptq_diff.releases import Release
from gptq_diff.upstream.pack import Pack, read_pack
from gptq_diff.upstream.plan import plan
from gptq_diff.upstream.spec import Compiled
from gptq_diff.upstream.store import Store

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""How long compilers may take to end after SIGTERM, before SIGKILL."""
CLEAR_SECONDS = 10.0


@dataclass(frozen=True)
class How:
    """python: interpreter whose torch the kernels are for. staged: directory for its PYTHONPATH.

    arch: compute capability to compile for, None for the GPU here. jobs: releases at a time. timeout: seconds for one.
    environment: what the processes start from.
    """

    python: Path
    staged: Path
    arch: str | None
    jobs: int
    timeout: float | None
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What came of one release. folder: of its kernel, None where it failed; failure: then why, and what to do."""

    release: Release
    folder: Path | None
    failure: str | None
    hint: str | None
    cached: bool
    seconds: float
    log: Path


Listener = Callable[["Outcome | Release"], None]
"""Is told of a release when its compiler starts, and of its outcome."""


def build_all(packs: Sequence[Path], store: Store, how: How, listen: Listener) -> list[Outcome]:
    """Compile the packs at those folders; outcomes in their order. UsageError, before any, for one that is damaged."""
    outcomes: dict[Path, Outcome] = {}
    known = {folder: read_pack(folder) for folder in packs}
    todo = list(known)
    with contextlib.ExitStack() as stack:
        running: list[_Compiler] = []
        while todo or running:
            while todo and len(running) < how.jobs:
                running.append(stack.enter_context(_compiler(todo[0], known[todo.pop(0)], store, how)))
                listen(running[-1].release)
            for one in [one for one in running if one.ended(how.timeout)]:
                running.remove(one)
                outcomes[one.pack] = one.outcome(how.timeout)
                listen(outcomes[one.pack])
            if running:
                time.sleep(POLL_SECONDS)
    return [outcomes[folder] for folder in known]


@dataclass
class _Compiler:
    """One compiling process; process is None where it could not even be started, refused then says why."""

    pack: Path
    release: Release
    log: Path
    result: Path
    process: subprocess.Popen[bytes] | None
    family: Family | None
    refused: GptqDiffError | None
    started: float

    def ended(self, timeout: float | None) -> bool:
        """Whether there is no more to wait for."""
        late = timeout is not None and time.monotonic() - self.started > timeout
        return self.process is None or self.process.poll() is not None or late

    def outcome(self, timeout: float | None) -> Outcome:
        """What came of it; a process that still runs is too late, and is ended."""
        seconds = time.monotonic() - self.started
        if self.refused is not None or self.process is None:
            return self._failed(str(self.refused), self.refused.hint if self.refused else None, seconds)
        if self.process.poll() is None:
            self.end()
            return self._failed(
                f"{self.release} was not compiled within {timeout:g} s", "give it more --timeout", seconds
            )
        said = Compiled.read(self.result)
        if said is not None and said.folder is not None:
            return Outcome(self.release, Path(said.folder), None, None, said.cached, seconds, self.log)
        if said is not None:
            return self._failed(f"{self.release}: {said.failure}", said.hint or f"the log is {self.log}", seconds)
        code = self.process.returncode
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        more = last_line(self.log) or "nothing in its log"
        return self._failed(f"{self.release}: its compiling process {ended}: {more}", f"the log is {self.log}", seconds)

    def end(self) -> None:
        """Nothing of it is left afterwards."""
        if self.process is None or self.family is None:
            return
        try:
            if self.process.poll() is None:
                self.family.look()
                _signal(self.process, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=GRACE_SECONDS)
        finally:
            _signal(self.process, signal.SIGKILL)
            self.process.wait()
            self.family.end(CLEAR_SECONDS)

    def _failed(self, failure: str, hint: str | None, seconds: float) -> Outcome:
        return Outcome(self.release, None, failure, hint, cached=False, seconds=seconds, log=self.log)


@contextlib.contextmanager
def _compiler(folder: Path, pack: Pack, store: Store, how: How) -> Iterator[_Compiler]:
    """Start it; end it in any case, with all that it started."""
    log = store.log(pack.release)
    with tempfile.TemporaryDirectory(prefix="gptq-diff-", ignore_cleanup_errors=True) as private:
        result, cwd = Path(private) / "result.json", Path(private) / "cwd"
        cwd.mkdir()
        mark = secrets.token_hex(16)
        one = _Compiler(folder, pack.release, log, result, None, None, None, time.monotonic())
        try:
            spec_file = Path(private) / "spec.json"
            plan(pack, folder, store.builds(pack.release), how.arch).write(spec_file)
            one.process = _started(how, spec_file, result, cwd, log, mark)
            one.family = Family(one.process.pid, mark)
        except GptqDiffError as e:
            one.refused = e
        try:
            yield one
        finally:
            one.end()


def _started(how: How, spec_file: Path, result: Path, cwd: Path, log: Path, mark: str) -> subprocess.Popen[bytes]:
    inherited = how.environment.get("PYTHONPATH")
    path = os.pathsep.join([str(how.staged), *([inherited] if inherited else [])])
    environment = {**how.environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", MARK: mark}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            return subprocess.Popen(  # noqa: S603  the interpreter that the kernels are for
                [str(how.python), "-m", "gptq_diff.upstream.compile", str(spec_file), str(result)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=environment, start_new_session=True,
            )  # fmt: skip
    except OSError as e:
        raise GptqDiffError(f"{how.python} cannot be started, or its log not written: {e.strerror or e}") from e


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
