"""The parent of the workers: starts one, watches it, and turns whatever happens into an outcome per backend.

A dead, hung or failing worker costs the backend it was running, with a reason; the jobs of the other backends go
on in a new worker. Leaving the loop in any way, Ctrl-C included, ends the worker and all that descends from it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from gptq_diff.errors import BackendError
from gptq_diff.jobs import AnyJob, EventReader, hand_out, round_file
from gptq_diff.log_end import last_line, log_end
from gptq_diff.memory import NOTHING, MemoryUse, memory_of
from gptq_diff.text import one_line
from gptq_diff.worker_process import Early, worker_for
from gptq_diff.worker_process import Load as Load

SAMPLE_SECONDS = 0.05
LINGER_SECONDS = 30.0
"""How long a worker may take to end after its last job."""
TEARDOWN_SECONDS = 3.0
"""The same once it has said that it ends: what an engine takes apart then, its ranks above all, is ended as well."""
LOOK_SECONDS = 2.0
"""How often it is noted who descends from a worker."""


@dataclass
class Outcome:
    """What became of one backend.

    failure: None when every job of the spec finished; else one sentence.
    log_end: then, what its worker's log said last.
    finished: keys (jobs.capture_key, or LinearJob.key) of the spec's jobs that are whole.
    followed: keys of the further jobs that are whole; further_failure: why there are no more of them.
    refused: LinearJob.key -> why the engine could not do it.
    """

    backend: str
    failure: str | None = None
    log_end: tuple[str, ...] = ()
    finished: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    further_failure: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: MemoryUse = NOTHING


@dataclass(frozen=True)
class _Failure:
    """Why a worker ended early; loaded: whether the engine was there, so that only one backend is to blame."""

    reason: str
    loaded: bool


Listener = Callable[[str, "dict[str, Any]"], None]
"""Called with a backend's name and each event of its worker."""


FollowUp = Callable[["Sequence[Outcome]"], "Sequence[AnyJob]"]
"""Called with the outcomes so far whenever no job is left; gives further jobs for the same load, none to end it."""


def run_load(
    load: Load, listen: Listener, follow_up: FollowUp | None = None, early: Early | None = None
) -> list[Outcome]:
    """Run every job of one load; outcomes in the order the backends appear in the jobs.

    early: a worker for it that may have been started before.

    follow_up: asked for further jobs, round after round. What goes wrong in them takes nothing back of what finished
    before: their backend gets no more of them, and Outcome.further_failure says why. Each backend's jobs of a round
    have Load.timeout for themselves; while follow_up thinks, no clock runs.
    """
    outcomes = {job.backend: Outcome(job.backend) for job in load.spec.jobs}
    further = _Further(follow_up, outcomes, frozenset(load.spec.jobs))
    jobs = load.spec.jobs
    while jobs:
        watch = _Watch(replace(load, spec=replace(load.spec, jobs=jobs)), outcomes, listen, further, early)
        failure = watch.run()
        jobs = ()
        if failure is not None:
            lost = {watch.backend} if failure.loaded else {job.backend for job in watch.load.spec.jobs}
            for name in sorted(lost):
                _lose(outcomes[name], failure, watch, listen)
            jobs = tuple(j for j in watch.left() if j.backend not in lost)
        if not jobs and not watch.ended:
            jobs = further.jobs()
    return list(outcomes.values())


def _lose(outcome: Outcome, failure: _Failure, watch: _Watch, listen: Listener) -> None:
    """Put it down to that backend: to what it was asked for at first, or to its further jobs alone."""
    if watch.further.of_spec(job for job in watch.left() if job.backend == outcome.backend):
        outcome.failure, outcome.log_end = failure.reason, watch.log_end()
        listen(outcome.backend, {"event": "failed", "reason": failure.reason})
    else:
        outcome.further_failure = failure.reason
        listen(outcome.backend, {"event": "further-failed", "reason": failure.reason})


@dataclass(frozen=True)
class _Further:
    """The further jobs of a load, if any are asked for. spec: those that it was given at first."""

    follow_up: FollowUp | None
    outcomes: dict[str, Outcome]
    spec: frozenset[AnyJob]

    def jobs(self) -> tuple[AnyJob, ...]:
        """The next round: of backends that have not lost it; none where all have."""
        if self.follow_up is None or not any(map(self._goes_on, self.outcomes)):
            return ()
        asked = self.follow_up(list(self.outcomes.values()))
        return tuple(job for job in asked if self._goes_on(job.backend))

    def of_spec(self, jobs: Iterable[AnyJob]) -> bool:
        """Whether any of them was asked for at first."""
        return any(job in self.spec for job in jobs)

    def _goes_on(self, name: str) -> bool:
        outcome = self.outcomes[name]
        return outcome.failure is None and outcome.further_failure is None


class _Watch:
    """One worker process from start to end.

    backend: the one whose job is running or comes next; what goes wrong is put down to it.
    ended: it has been told that there are no further jobs.
    """

    def __init__(
        self, load: Load, outcomes: dict[str, Outcome], listen: Listener, further: _Further, early: Early | None
    ) -> None:
        self.load = load
        self._early = early
        self.outcomes = outcomes
        self.listen = listen
        self.further = further
        self.backend = load.spec.jobs[0].backend
        self.ended = further.follow_up is None
        self._jobs = list(load.spec.jobs)
        self._round: int | None = None
        self._loaded = False
        self._error: str | None = None
        self._since = 0.0
        self._done_since: float | None = None
        self._said_end = False
        self._log_start = load.log.stat().st_size if load.log.exists() else 0

    def log_end(self) -> tuple[str, ...]:
        """What this worker's log says last; the workers of one load write into one file."""
        return log_end(self.load.log, self._log_start)

    def left(self) -> list[AnyJob]:
        """The jobs that have not finished; the first of them is the one at hand, since they run in order."""
        done = {name: {*outcome.finished, *outcome.followed} for name, outcome in self.outcomes.items()}
        return [job for job in self._jobs if job.key not in done[job.backend]]

    def run(self) -> _Failure | None:
        """None when every job has finished."""
        load = self.load
        self._since = time.monotonic()
        try:
            with worker_for(load, asks=self.further.follow_up is not None, early=self._early) as worker:
                self._log_start = worker.log_start
                self._since = looked = time.monotonic()
                process, reader = worker.process, EventReader(worker.events)
                while process.poll() is None:
                    self._sample(process.pid)
                    self._handle(reader.new())
                    if self._round is not None:
                        self._answer(worker.further)
                    if load.timeout is not None and time.monotonic() - self._since > load.timeout:
                        doing = "" if self._loaded else ", while it was loading"
                        return _Failure(f"timed out after {load.timeout:g} s{doing}", self._loaded)
                    if self._lingers():
                        worker.grace = 0.0  # all that it did is kept
                        return None
                    if time.monotonic() - looked > LOOK_SECONDS:
                        worker.family.look()
                        looked = time.monotonic()
                    time.sleep(SAMPLE_SECONDS)
                self._handle(reader.new())
                return self._verdict(process.returncode)
        except BackendError as e:
            return _Failure(str(e), loaded=False)

    def _answer(self, further: Path) -> None:
        """The worker waits: think of its next jobs, and start the clock once they are handed out."""
        assert self._round is not None
        number, self._round = self._round, None
        jobs = self.further.jobs()
        self._jobs += jobs
        self.ended = not jobs
        if jobs:
            self.backend = jobs[0].backend
        hand_out(jobs, round_file(further, number))
        self._since, self._done_since = time.monotonic(), None

    def _lingers(self) -> bool:
        """Whether every job finished a while ago and the process is still there: it is ended, and nothing is lost."""
        if self.left():
            return False
        self._done_since = self._done_since or time.monotonic()
        return time.monotonic() - self._done_since > (TEARDOWN_SECONDS if self._said_end else LINGER_SECONDS)

    def _sample(self, pid: int) -> None:
        """The memory of its captures; that of further jobs is not the backend's."""
        if not self.further.of_spec(self.left()):
            return
        outcome = self.outcomes[self.backend]
        outcome.memory = outcome.memory.peak(memory_of(pid))

    def _handle(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            kind = event["event"]
            self.listen(self.backend, event)
            if kind == "loaded":
                self._loaded = True
                own = [job for job in self._jobs if self.further.of_spec([job])]
                for outcome in {j.backend: self.outcomes[j.backend] for j in own}.values():
                    outcome.versions = dict(event["versions"])
                    outcome.seconds["load"] = event["seconds"]
                    outcome.memory = outcome.memory.peak(_gpu(event))
            elif kind in {"done", "linear-done"}:
                self._done(self._jobs[event["job"]], event)
            elif kind == "waiting":
                self._round = event["round"]
            elif kind == "end":
                self._said_end, self._done_since = True, time.monotonic()
            elif kind == "error":
                self._error = "; ".join(part for part in (event["message"], event["hint"]) if part)

    def _done(self, job: AnyJob, event: dict[str, Any]) -> None:
        outcome = self.outcomes[job.backend]
        if event.get("refused") is not None:
            outcome.refused[job.key] = event["refused"]
        if self.further.of_spec([job]):
            outcome.finished.append(job.key)
            outcome.versions |= event.get("versions", {})
            outcome.memory = outcome.memory.peak(_gpu(event))
        else:
            outcome.followed.append(job.key)
        self._go_on()

    def _go_on(self) -> None:
        """A job is done: the clock starts anew where the next one is another backend's."""
        left = self.left()
        if left and left[0].backend != self.backend:
            self.backend, self._since = left[0].backend, time.monotonic()

    def _verdict(self, code: int) -> _Failure | None:
        if not self.left():
            return None  # a crash on the way out (CUDA's teardown is known for it) takes nothing back
        if self._error is not None:
            return _Failure(one_line(self._error), self._loaded)
        said = last_line(self.load.log, self._log_start)
        if code < 0:
            killed = f"its worker was killed by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                return _Failure(f"{killed} (out of memory?)", self._loaded)
            return _Failure(f"{killed}; its log ends with: {said}" if said else killed, self._loaded)
        ended = "its worker ended before its work" if code == 0 else f"its worker ended with status {code}"
        return _Failure(f"{ended}: {said or 'nothing in its log'}", self._loaded)


def _gpu(event: dict[str, Any]) -> MemoryUse:
    """The GPU memory that a worker's event tells of."""
    return MemoryUse(None, None, event.get("gpu"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
