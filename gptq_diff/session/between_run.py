"""The stage that judges what happens between the linears of a run, and brings it into the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gptq_diff.between_file import between_file, read_between, write_between
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.judge_run import Key
from gptq_diff.diagnose.between.judge import Intervals
from gptq_diff.records import INTERVALS, Between, IntervalCount, Result, SkippedLayer
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.behind import GoOn, unhindered
from gptq_diff.session.finished import finished_captures, open_finished

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.compare.align import Captured


class IntervalStage:
    """Captures are followed some at a time; what was found is stored for all of them at the end."""

    def __init__(self, run: RunDir, judge: Checkpoint) -> None:
        self._run = run
        self._intervals = Intervals(judge)
        self._captures: dict[Key, Captured] = {}

    def follow(self, record: RunRecord, keys: Sequence[Key], go_on: GoOn = unhindered) -> None:
        """Judge what happens within the blocks of these captures. go_on: called before each."""
        captures = open_finished(self._run, record, keys)
        self._captures.update(captures)
        self._intervals.follow(captures, {p.id: p.token_ids for p in self._run.prompts()}, go_on)

    def store(self, record: RunRecord) -> RunRecord:
        """Judge the output heads and store everything; a pruned capture keeps what it had.

        The record with the seconds that it took, where it has none yet.
        """
        keys = [key for key in finished_captures(record, self._run) if key in self._captures]
        seconds: dict[str, float] = {}
        for key, fresh in self._intervals.judged(keys).items():
            path = between_file(self._run.root, *key)
            stored = read_between(path)
            if stored is None or len(fresh.judgements) >= len(stored.judgements):
                write_between(path, fresh)
            seconds[key[0]] = seconds.get(key[0], 0.0) + self._captures[key].seconds
            self._captures[key].reader.close()
        took = {name: {"between": round(total, 3)} for name, total in seconds.items() if total > 0}
        backends = (replace(b, seconds={**took.get(b.name, {}), **b.seconds}) for b in record.backends)
        return replace(record, backends=tuple(backends))


def judge_intervals(run: RunDir, record: RunRecord, keys: Sequence[Key], judge: Checkpoint) -> RunRecord:
    """Both at once."""
    stage = IntervalStage(run, judge)
    stage.follow(record, keys)
    return stage.store(record)


def with_intervals(result: Result, between: Between | None) -> Result:
    """The result with its intervals counted and their findings; those of what broke first come first."""
    if between is None:
        return result
    judged = [j for j in between.judgements if j.kind != "inherited"]
    excesses = [j.excess for j in judged if j.excess is not None]
    count = IntervalCount(
        len({j.stored for j in judged}), tuple(SkippedLayer(name, why) for name, why in between.skipped.items()),
        max(excesses, default=None),
    )  # fmt: skip
    first = result.first_bad is not None and result.first_bad.path in INTERVALS
    findings = (between.findings, result.findings) if first else (result.findings, between.findings)
    return replace(result, intervals=count, findings=(*findings[0], *findings[1]))
