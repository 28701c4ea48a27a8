"""What is done with captures, stage after stage: judged, what is between their linears too, explained, measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Callable

from gptq_diff.compare.judge_run import Key
from gptq_diff.session.behind import Behind, GoOn, Work, at_once, unhindered
from gptq_diff.session.between_run import IntervalStage
from gptq_diff.session.compare_run import judge_run
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.headroom_run import measure_headroom

if TYPE_CHECKING:
    import torch

    from gptq_diff.capture.run_dir import RunDir
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.session.asked import RunRecord


class Stages:
    """The stages of one run; captures come some at a time, all of a backend together.

    judge, loaded, known: as in judge_run. progress: told how many linears have been judged, and of how many.
    """

    def __init__(
        self, run: RunDir, judge: Checkpoint, loaded: Checkpoint, known: Mapping[Key, float],
        progress: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self._run = run
        self._judge = judge
        self._loaded = loaded
        self._known = known
        self._progress = progress
        self._intervals = IntervalStage(run, judge)

    def some(self, record: RunRecord, keys: Sequence[Key], go_on: GoOn) -> RunRecord:
        """One stage after the other; the record with the seconds that were noted."""
        record = self._explained(record, keys, go_on)
        measure_headroom(self._run, record, keys, self._judge, self._loaded, go_on)
        return record

    def last(self, record: RunRecord, keys: Sequence[Key]) -> RunRecord:
        """The same of the captures that are left, and what is done for all together; afterwards everything is stored.

        Headroom is measured beside the rest where a GPU makes the sums.
        """
        headroom = partial(measure_headroom, self._run, record, keys, self._judge, self._loaded)
        with beside(headroom, on=self._judge.work_device):
            record = self._explained(record, keys, unhindered)
            return self._intervals.store(record)

    def _explained(self, record: RunRecord, keys: Sequence[Key], go_on: GoOn) -> RunRecord:
        run, judge, loaded = self._run, self._judge, self._loaded

        def progress(done: int, total: int) -> None:
            go_on()
            self._progress(done, total)

        record = judge_run(run, record, keys, judge, loaded, progress, self._known).noted(record)
        self._intervals.follow(record, keys, go_on)
        diagnose_run(run, record, keys, judge, loaded, go_on)
        return record


@contextlib.contextmanager
def beside(work: Work, *, on: torch.device) -> Iterator[None]:
    """Do that beside what is done inside, where a GPU makes its sums; else afterwards. Raises what it raised."""
    if on.type == "cpu":
        yield
        at_once(work)
        return
    with Behind() as behind:
        behind.later(work)
        yield
