"""Experiments on the kernels of one load, while its engine is there: judged captures in, further jobs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.products import X, read_products
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import save_tensors
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.diagnose.experiments.all_probes import judge_all, next_calls
from gptq_diff.diagnose.experiments.answers import answers_of
from gptq_diff.diagnose.experiments.base import Answer, Subject
from gptq_diff.jobs import LinearJob
from gptq_diff.records import Experiment
from gptq_diff.session.experiments_store import fresh_dir, write_experiments

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.launch import Outcome


@dataclass
class _Bench:
    """One subject and how far its experiments have come.

    place: its directory. job: at work, None before the first and after the last. rounds: asked for so far.
    """

    subject: Subject
    place: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    job: LinearJob | None = None
    rounds: int = 0

    def next_job(self) -> LinearJob | None:
        """The next round; None where the probes have all that they need."""
        calls = next_calls(self.subject, self.answers)
        self.job = None
        if calls:
            self.rounds += 1
            s, out = self.subject, self.place / f"round-{self.rounds}.safetensors"
            self.job = LinearJob(s.backend, s.kernel, s.layer, str(self.place / f"{X}.safetensors"), calls, str(out))
        return self.job


class Experiments:
    """Plans, judges and stores the experiments on these subjects; `further` is what gptq_diff.launch.run_load asks."""

    def __init__(self, run: RunDir, subjects: Sequence[Subject], judge: Checkpoint, loaded: Checkpoint) -> None:
        self._judge = judge
        self._loaded = loaded
        self._specs = {spec.name: spec for spec in judge.layers}
        self._open = [self._bench(run, subject) for subject in subjects]

    def _bench(self, run: RunDir, subject: Subject) -> _Bench:
        place = fresh_dir(run, subject.backend, subject.prompt)
        save_tensors({X: subject.x_MK}, place / f"{X}.safetensors")
        return _Bench(subject, place)

    def first(self) -> list[LinearJob]:
        """The first round."""
        return self._next(self._open)

    def further(self, outcomes: Sequence[Outcome]) -> list[LinearJob]:
        """What the kernels gave is judged; the next round of those that need one, the others are stored."""
        known = {outcome.backend: outcome for outcome in outcomes}
        return self._next([bench for bench in self._open if self._collect(bench, known)])

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Store what there is of those that a worker's end has cut short."""
        for bench in list(self._open):
            backend = bench.subject.backend
            failure = next((o.further_failure or o.failure for o in outcomes if o.backend == backend), None)
            self._store(bench, failure or "its worker ended before them")

    def _next(self, benches: Sequence[_Bench]) -> list[LinearJob]:
        jobs = []
        for bench in benches:
            job = bench.next_job()
            if job is None:
                self._store(bench, None)
            else:
                jobs.append(job)
        return sorted(jobs, key=lambda job: job.kernel)  # stable: making a kernel may take long

    def _collect(self, bench: _Bench, outcomes: Mapping[str, Outcome]) -> bool:
        """Judge what its job gave; False where there will be nothing more."""
        outcome, job = outcomes[bench.subject.backend], bench.job
        if job is None or job.key not in (*outcome.finished, *outcome.followed):
            return False  # lost with its worker, which `close` will tell
        if job.key in outcome.refused:
            self._store(bench, outcome.refused[job.key])
            return False
        weight = layer_weight(self._specs[job.layer], self._judge, self._loaded)
        bench.answers |= answers_of(bench.subject, weight, job.calls, read_products(Path(job.out)))
        return True

    def _store(self, bench: _Bench, lost: str | None) -> None:
        """Write what the answers say; lost: why there are not more of them."""
        experiments = list(judge_all(bench.subject, bench.answers)) if bench.answers else []
        if lost is not None:
            experiments.append(not_run(bench.subject.layer, bench.subject.step, lost))
        write_experiments(bench.place, experiments)
        self._open.remove(bench)


def not_run(layer: str, step: int, why: str) -> Experiment:
    """In place of experiments that could not be made."""
    return Experiment("not-run", layer, step, "experiments on the live kernel", {}, (f"not all were made: {why}",))
