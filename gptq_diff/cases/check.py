"""Many cases: run, each apart from the others, with one planted fault to see that the guard sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

import gptq_diff
from gptq_diff.cases.case import Case
from gptq_diff.cases.check_dir import CheckDir
from gptq_diff.cases.runner import run_cases
from gptq_diff.cases.tasks import Task
from gptq_diff.environment import environment
from gptq_diff.records import CaseOutcome, CheckReport, SelfTest


@dataclass(frozen=True)
class CheckAsked:
    """What `check` was asked for, after all checks of the input.

    backends, device, tensor_parallel, timeout, seed: as in `run_case`. jobs: cases at a time.
    """

    cases: tuple[Case, ...]
    backends: str | None = None
    device: str = ""
    tensor_parallel: int = 1
    timeout: float = 3600.0
    seed: int = 0
    jobs: int = 1
    keep_going: bool = True


class Runs(Protocol):
    """How cases are run; in tests without processes."""

    def __call__(
        self,
        tasks: Sequence[tuple[Case, Task]],
        logs: Path,
        finished: Callable[[CaseOutcome], None],
        *,
        jobs: int,
        keep_going: bool,
    ) -> Mapping[str, CaseOutcome]:
        """Outcomes by case."""  # fmt: skip


def check(
    asked: CheckAsked, place: CheckDir, finished: Callable[[CaseOutcome], None], runs: Runs = run_cases
) -> CheckReport:
    """Run all of them; nothing is said on the terminal but by `finished`."""
    started = time.perf_counter()
    tasks = [(case, task_of(asked, case, place.case(case.name), reuse=place.resumed)) for case in asked.cases]
    found = runs(tasks, place.logs, finished, jobs=asked.jobs, keep_going=asked.keep_going)
    return CheckReport(
        schema_version=1, gptq_diff=gptq_diff.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), environment=environment(),
        cases=tuple(found.values()), self_test=SelfTest("", None, sees=False, reason="not run"), seed=asked.seed,
        seconds=round(time.perf_counter() - started, 2),
        not_begun=tuple(case.name for case in asked.cases if case.name not in found),
    )  # fmt: skip


def task_of(asked: CheckAsked, case: Case, out: Path, *, reuse: bool) -> Task:
    """What the process that runs it is told."""
    return Task(
        str(case.file), str(out), asked.backends, None, asked.device, asked.tensor_parallel, asked.timeout, asked.seed,
        reuse,
    )  # fmt: skip
