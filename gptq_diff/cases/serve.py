"""The process that runs cases: imports torch once, then works through its tasks."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from gptq_diff.cases.read import read_case
from gptq_diff.cases.run_case import RunSettings, run_case
from gptq_diff.cases.tasks import Task, done_file, handed_out, task_file
from gptq_diff.processes import end_with_parent

POLL_SECONDS = 0.02


def serve(folder: Path) -> None:
    """Task after task of that folder until one says that there are no more."""
    number = 1
    while True:
        while not task_file(folder, number).exists():
            time.sleep(POLL_SECONDS)
        task = handed_out(folder, number)
        if task is None:
            return
        carry_out(task)
        done_file(folder, number).touch()
        number += 1


def carry_out(task: Task) -> None:
    """Run its case; the outcome lies below task.out afterwards."""
    settings = RunSettings(
        task.device,
        task.tensor_parallel,
        task.timeout,
        task.seed,
        task.reuse,
        lambda line: print(line, flush=True),  # noqa: T201  its log
    )
    run_case(read_case(Path(task.case)), out=Path(task.out), backends=task.backends, interpreter=task.interpreter,
             settings=settings)  # fmt: skip


def main(folder: str, parent: int) -> int:
    """Until there are no more tasks, or the parent is gone."""
    end_with_parent(parent)
    serve(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
