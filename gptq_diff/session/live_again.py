"""Experiments for a finished run: its engines are started once more, with nothing else to do.

Nothing that runs code is taken from the run directory, which may have come from elsewhere: interpreters are those of
this machine, or named on the command line.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.judge_run import open_captures
from gptq_diff.errors import UsageError
from gptq_diff.jobs import LinearJob, WorkerSpec
from gptq_diff.judged_file import read_judged
from gptq_diff.launch import Listener, Load, run_load
from gptq_diff.presets import BackendRequest, parse_backends, preset_named
from gptq_diff.session.asked import Backend, RunRecord
from gptq_diff.session.devices import device_of
from gptq_diff.session.experiments_store import fresh_dir, write_experiments
from gptq_diff.session.live import Experiments, not_run
from gptq_diff.session.live_subjects import Chosen, chosen, concerned, subjects
from gptq_diff.session.loads import cache_dir, worker_variables
from gptq_diff.session.prepare import prepare_backend
from gptq_diff.stage import stage_package

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class Again:
    """How engines are started again.

    mode: as --experiments. backends: names, each optionally with @PYTHON; None for all of the run that the mode
    concerns. device: --device. timeout: seconds of each backend, None for no limit.
    """

    mode: str
    backends: str | None = None
    device: str = ""
    timeout: float | None = 3600.0
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Finished:
    """A finished run with the checkpoints that belong to it, as the judge takes them."""

    run: RunDir
    record: RunRecord
    judge: Checkpoint
    loaded: Checkpoint


def experiments_again(finished: Finished, how: Again, listen: Listener, say: Callable[[str], None]) -> int:
    """Make the experiments of every backend concerned whose tensors are there; returns on how many calls.

    An engine that cannot be started here leaves the reason in place of experiments.
    """
    choice: dict[str, list[Chosen]] = {}
    backends = []
    for request in _requests(finished.record, how):
        found = _chosen(finished, request.preset.name, how.mode)
        if not found:
            continue
        try:
            backends.append(prepare_backend(request))
        except UsageError as e:
            if how.backends is not None:
                raise
            say(str(e))
            for c in found:
                lost = not_run(c.judgement.layer, c.judgement.step, str(e))
                write_experiments(fresh_dir(finished.run, *c.key), [lost])
            continue
        choice[request.preset.name] = found
    made = 0
    for _, group in itertools.groupby(sorted(backends, key=lambda b: b.load), key=lambda b: b.load):
        of_load = list(group)
        calls = [c for b in of_load for c in choice[b.name]]
        made += _one_load(finished, how, listen, say, of_load, calls)
    return made


def _requests(record: RunRecord, how: Again) -> list[BackendRequest]:
    """What is concerned, with the interpreter that the user names."""
    known = {b.name: b for b in record.backends if b.finished}
    if how.backends is None:
        presets = [preset_named(name) for name in known]
        return [BackendRequest(p) for p in presets if concerned(how.mode, p.engine, p.kernel)]
    requests = list(parse_backends(how.backends))
    for request in requests:
        if request.preset.name not in known:
            raise UsageError(f"this run has no capture of {request.preset.name}", f"it has {', '.join(known)}")
    return requests


def _chosen(finished: Finished, backend: str, mode: str) -> list[Chosen]:
    record = next(b for b in finished.record.backends if b.name == backend)
    keys = [(backend, p.id) for p in finished.run.prompts() if p.id in record.finished]
    return chosen({key: read_judged(finished.run.judged(*key)) for key in keys}, mode)


def _one_load(
    finished: Finished, how: Again, listen: Listener, say: Callable[[str], None], backends: Sequence[Backend],
    choice: Sequence[Chosen],
) -> int:  # fmt: skip
    run, judge, loaded = finished.run, finished.judge, finished.loaded
    captures = open_captures(run, [c.key for c in choice], finished.record.reference)
    found = subjects(run, choice, captures, {b.name: b.kernel for b in backends}, judge, loaded)
    for captured in captures.values():
        captured.reader.close()
    experiments = Experiments(run, found, judge, loaded)
    first = experiments.first()
    if not first:
        return 0
    say(f"starting {backends[0].engine} once more for {', '.join(dict.fromkeys(s.backend for s in found))}")
    experiments.close(run_load(_load(finished, how, backends[0], first), listen, experiments.further))
    return len(found)


def _load(finished: Finished, how: Again, backend: Backend, jobs: Sequence[LinearJob]) -> Load:
    """As the backend was loaded for the run, with linears by themselves as all there is to do."""
    run = finished.run
    model = finished.judge if backend.name == finished.record.reference else finished.loaded
    spec = WorkerSpec(
        engine=backend.engine, model=str(model.path.absolute()), dtype=backend.dtype,
        device=device_of(backend.engine, how.device, backend.kernel),
        trust_remote_code=how.trust_remote_code, threads=0, seed=0, events="", parent=os.getpid(),
        jobs=tuple(jobs), route=backend.route,
        room=max(p.tokens for p in run.prompts()) + 1,
    )  # fmt: skip
    log = (run.root / "logs" / f"{backend.name}.experiments.log").absolute()
    log.unlink(missing_ok=True)
    variables = worker_variables(backend.engine, how.device)
    return Load(Path(backend.python), stage_package(cache_dir()), log, how.timeout, variables, spec)
