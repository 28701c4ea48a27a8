"""Runs cases in processes of their own, as many at once as asked, and turns whatever happens into an outcome."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gptq_diff
from gptq_diff.cases.case import Case
from gptq_diff.cases.outcome_file import read_outcome
from gptq_diff.cases.tasks import Task, done_file, hand_out
from gptq_diff.log_end import last_line
from gptq_diff.processes import descendants, end_descendants, running
from gptq_diff.records import ERROR, CaseOutcome

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
"""How long a process may take to end after SIGINT."""
START = "import sys; sys.path.insert(0, sys.argv[1]); from gptq_diff.cases.serve import main; " \
        "sys.exit(main(sys.argv[2], int(sys.argv[3])))"  # fmt: skip
"""Our own package first, and never what lies where the user stands."""

Finished = Callable[[int, CaseOutcome], None]
"""Told of each case as it ends, by its place among the tasks."""


def run_cases(
    tasks: Sequence[tuple[Case, Task]], logs: Path, finished: Finished, *, jobs: int, keep_going: bool
) -> list[CaseOutcome | None]:
    """An outcome a task; without keep_going no case is begun after one that did not hold: None stands for those.

    logs: directory for what the processes print. Leaving in any way, Ctrl-C included, ends them and their workers.
    """
    left = list(range(len(tasks)))
    found: list[CaseOutcome | None] = [None] * len(tasks)
    with contextlib.ExitStack() as open_:
        hands = [open_.enter_context(_hand(logs, number)) for number in range(min(jobs, len(tasks)))]
        while left or any(hand.busy for hand in hands):
            for hand in hands:
                outcome = hand.look()
                if outcome is not None:
                    found[hand.place] = outcome
                    finished(hand.place, outcome)
                    if not keep_going and outcome.bad:
                        left = []
                if left and not hand.busy:
                    place = left.pop(0)
                    hand.give(place, *tasks[place])
            time.sleep(POLL_SECONDS)
    return found


@contextlib.contextmanager
def _hand(logs: Path, number: int) -> Iterator[_Hand]:
    hand = _Hand(logs / f"cases-{number + 1}.log")
    try:
        yield hand
    finally:
        hand.end()


class _Hand:
    """One process that runs cases, started again where a case has taken it down. place: of the task at hand."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._number = 0
        self._now: tuple[Case, Task] | None = None
        self._log_start = 0
        self.place = 0

    @property
    def busy(self) -> bool:
        """Whether a case is running."""
        return self._now is not None

    def give(self, place: int, case: Case, task: Task) -> None:
        """Begin a case."""
        self.place = place
        if self._process is None:
            self._start()
        assert self._place is not None
        self._number += 1
        self._now = (case, task)
        self._log_start = self._log.stat().st_size
        hand_out(task, Path(self._place.name), self._number)

    def look(self) -> CaseOutcome | None:
        """The outcome of the case that was running, if it has ended."""
        if self._now is None or self._process is None or self._place is None:
            return None
        case, task = self._now
        code = self._process.poll()
        if done_file(Path(self._place.name), self._number).exists():
            self._now = None
            outcome = read_outcome(Path(task.out))
            return outcome or CaseOutcome(case.name, ERROR, f"its outcome in {task.out} cannot be read")
        if code is None:
            return None
        self._now = None
        self._stop()
        how = f"killed by signal {-code}" if code < 0 else f"status {code}"
        said = last_line(self._log, self._log_start)
        return CaseOutcome(case.name, ERROR, f"it took its process with it ({how}): {said or 'nothing in its log'}")

    def end(self) -> None:
        """Nothing of it is left afterwards."""
        if self._process is not None:
            self._stop()

    def _start(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="gptq-diff-check-", ignore_cleanup_errors=True)
        self._number = 0
        (Path(self._place.name) / "empty").mkdir()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        root = Path(gptq_diff.__file__).parent.parent
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, str(root), self._place.name, str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=Path(self._place.name) / "empty",
                start_new_session=True,
            )  # fmt: skip

    def _stop(self) -> None:
        assert self._process is not None and self._place is not None
        try:
            if self._process.poll() is None:
                if self._now is None:
                    hand_out(None, Path(self._place.name), self._number + 1)
                else:
                    self._process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS)
        finally:
            below = descendants(self._process.pid, running())
            if self._process.poll() is None or below:
                end_descendants(self._process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._place.cleanup()
            self._process, self._place = None, None
