"""Cases handed to a process that runs them, one after the other: plain files both ways.

The parent writes TASK-N.json by rename; the process answers with the case's own outcome.json and DONE-N. A case that
takes its process with it costs that case alone: the parent starts another process for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_diff.cases.case import Case
from gptq_diff.errors import UsageError
from gptq_diff.whole_file import write_whole


@dataclass(frozen=True)
class Task:
    """One case to run.

    case, out: absolute; the case file and where its outcome is to lie. The others: as `run_case` has them.
    """

    case: str
    out: str
    backends: str | None = None
    interpreter: str | None = None
    device: str = ""
    tensor_parallel: int = 1
    timeout: float = 3600.0
    seed: int = 0
    reuse: bool = False


def keep_apart(cases: Sequence[Case], out: Path) -> None:
    """UsageError where a case file lies in what is emptied before."""
    for case in cases:
        if out.absolute() in case.file.parents:
            raise UsageError(f"{case.file} lies in {out}, which is emptied before", "choose another --out")


def task_file(folder: Path, number: int) -> Path:
    """Where a task is handed out; the first is number 1."""
    return folder / f"task-{number}.json"


def done_file(folder: Path, number: int) -> Path:
    """There when that task has its outcome."""
    return folder / f"done-{number}"


def hand_out(task: Task | None, folder: Path, number: int) -> None:
    """Whole or not at all; None ends the process."""
    write_whole(task_file(folder, number), json.dumps(None if task is None else asdict(task)))


def handed_out(folder: Path, number: int) -> Task | None:
    """That task, which must be there; None for the end."""
    raw = json.loads(task_file(folder, number).read_text(encoding="utf-8"))
    return None if raw is None else Task(**raw)
