"""Many cases: run, each apart from the others, with one planted fault to see that the guard sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

import gptq_diff
from gptq_diff.cases.baseline import Baseline
from gptq_diff.cases.case import Case
from gptq_diff.cases.check_dir import CheckDir
from gptq_diff.cases.runner import Finished, run_cases
from gptq_diff.cases.self_test import drawn, verdict
from gptq_diff.cases.tasks import Task
from gptq_diff.environment import environment
from gptq_diff.records import CaseOutcome, CheckReport


@dataclass(frozen=True)
class CheckAsked:
    """What `check` was asked for, after all checks of the input.

    backends, device, tensor_parallel, timeout: as in `run_case`. seed: draws the self-test. jobs: cases at a time.
    baseline: what local errors are compared with; None for nothing. baseline_file: its name, for reports.
    """

    cases: tuple[Case, ...]
    backends: str | None = None
    device: str = ""
    tensor_parallel: int = 1
    timeout: float = 3600.0
    seed: int = 0
    jobs: int = 1
    keep_going: bool = True
    baseline: Baseline | None = None
    baseline_file: str = ""


class Runs(Protocol):
    """How cases are run; in tests without processes."""

    def __call__(
        self, tasks: Sequence[tuple[Case, Task]], logs: Path, finished: Finished, *, jobs: int, keep_going: bool
    ) -> Sequence[CaseOutcome | None]:
        """An outcome a task, None for those that were not begun."""


Told = Callable[[str, CaseOutcome], None]
"""Told of each case as it ends, the self-test among them, by what it is called."""


def check(asked: CheckAsked, place: CheckDir, told: Told, runs: Runs | None = None) -> CheckReport:
    """Plant a fault, run all cases, compare with the baseline; nothing is said on the terminal but by `told`.

    runs: how cases are run; None for processes of their own.
    """
    started = time.perf_counter()
    planted = drawn(asked.seed)
    own = replace(asked, backends=None, device="", tensor_parallel=1)  # what it takes is here for certain
    tasks = [(planted, task_of(own, planted, place.self_test(planted.name), reuse=False))]
    tasks += [(case, task_of(asked, case, place.case(case.name), reuse=place.resumed)) for case in asked.cases]

    def finished(number: int, outcome: CaseOutcome) -> None:
        if number == 0:
            told("self-test", outcome)
        else:
            told(outcome.name, compared(asked, outcome))

    first, *found = (runs or run_cases)(tasks, place.logs, finished, jobs=asked.jobs, keep_going=asked.keep_going)
    return CheckReport(
        schema_version=1, gptq_diff=gptq_diff.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), environment=environment(),
        cases=tuple(compared(asked, outcome) for outcome in found if outcome is not None),
        self_test=verdict(planted, first), seed=asked.seed, seconds=round(time.perf_counter() - started, 2),
        baseline=asked.baseline_file,
        not_begun=tuple(case.name for case, outcome in zip(asked.cases, found) if outcome is None),
    )  # fmt: skip


def compared(asked: CheckAsked, outcome: CaseOutcome) -> CaseOutcome:
    """The outcome beside the baseline, where there is one to compare with."""
    return outcome if asked.baseline is None else asked.baseline.compare(outcome)


def task_of(asked: CheckAsked, case: Case, out: Path, *, reuse: bool) -> Task:
    """What the process that runs it is told."""
    return Task(
        str(case.file), str(out), asked.backends, None, asked.device, asked.tensor_parallel, asked.timeout, 0, reuse
    )


def shard(cases: Sequence[Case], number: int, of: int) -> tuple[Case, ...]:
    """Every `of`-th case from the number-th on, so that cases that take long are spread."""
    return tuple(cases[number - 1 :: of])
