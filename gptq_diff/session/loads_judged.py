"""What becomes of a load's captures once it has ended, while the loads after it are at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Callable

from gptq_diff.compare.judge_run import Key
from gptq_diff.session.behind import Behind, GoOn
from gptq_diff.session.finished import finished_captures

if TYPE_CHECKING:
    from gptq_diff.capture.run_dir import RunDir
    from gptq_diff.session.asked import BackendRecord, RunRecord

Settle = Callable[["RunRecord", Sequence[Key], GoOn], "RunRecord"]
"""Does with these captures all that needs no others; gives the record with what was noted of their backends."""


class LoadsJudged:
    """Settles every load that it is told of, behind the run.

    done: the captures that were settled; to be read once `behind` has been left.
    """

    def __init__(self, run: RunDir, settle: Settle, behind: Behind) -> None:
        self._run = run
        self._settle = settle
        self._behind = behind
        self._noted: dict[str, BackendRecord] = {}
        self.done: set[Key] = set()

    def take(self, record: RunRecord, backends: Sequence[str]) -> None:
        """The load of these backends has ended. record: as far as the run has come."""
        keys = [key for key in finished_captures(record, self._run) if key[0] in backends]

        def settle(go_on: GoOn) -> None:
            settled = self._settle(record, keys, go_on)
            self._noted.update({b.name: b for b in settled.backends if b.name in backends})
            self.done.update(keys)

        if keys:
            self._behind.later(settle)

    def noted(self, record: RunRecord) -> RunRecord:
        """The record with what was noted of the backends that were settled."""
        return replace(record, backends=tuple(self._noted.get(b.name, b) for b in record.backends))
