"""Comparing a finished capture again: with the checkpoint where there is one, else from what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.compare.judge_run import Key
from gptq_diff.compare.place import judging_device
from gptq_diff.errors import GptqDiffError
from gptq_diff.launch import Listener
from gptq_diff.records import Report
from gptq_diff.report.json_report import read_report
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.between_run import judge_intervals
from gptq_diff.session.compare_run import judge_run, report_run
from gptq_diff.session.decode import Decoder
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.headroom_run import measure_headroom
from gptq_diff.session.live_again import Again, Finished, experiments_again
from gptq_diff.session.main_job import write
from gptq_diff.session.opened import open_alone


def compare_again(
    root: Path, model: str | None, reference_model: str | None, *, allow_skip: bool, say: Callable[[str], None],
    judging: bool = True, live: Again | None = None, listen: Listener = lambda *_: None,
) -> Report:  # fmt: skip
    """Judge and diagnose again what tensors are there; a checkpoint given by hand must be the one of the run.

    judging: False keeps the stored judgements, and says only why bad layers are bad. live: starts engines once more,
    for experiments; listen is told of their workers.
    """
    with open_alone(root, model, reference_model) as opened:
        run, record = opened.run, replace(opened.record, allow_skip=opened.record.allow_skip or allow_skip)
        if opened.interrupted:
            say("this run was interrupted: what is whole is judged, and the rest is named below")
        if opened.missing:
            say(f"nothing is computed again, what is stored is used: {opened.missing}; give --model DIR where it lies")
        else:
            loaded, judge = opened.checkpoints()
            judge.work_device = judging_device("", judge.layers)
            captures = finished_captures(record, run)
            if judging:
                record = _judged_again(run, record, captures, judge, loaded, say)
                record = judge_intervals(run, record, captures, judge)
            diagnose_run(run, record, captures, judge, loaded)
            measure_headroom(run, record, captures, judge, loaded)
            if live is not None:
                experiments_again(Finished(run, record, judge, loaded), live, listen, say)
        tokenizer = opened.loaded.path if isinstance(opened.loaded, Checkpoint) else None
        report = report_run(run, record, Decoder(tokenizer, _earlier_texts(root)))
        return write(run, replace(record, state="interrupted" if opened.interrupted else "finished"), report)


def _judged_again(
    run: RunDir, record: RunRecord, captures: Sequence[Key], judge: Checkpoint, loaded: Checkpoint,
    say: Callable[[str], None],
) -> RunRecord:  # fmt: skip
    judged = judge_run(run, record, captures, judge, loaded, lambda *_: None)
    kept = judged.calls - judged.fresh
    if kept:
        say(f"{kept} of {judged.calls} kernel calls keep their stored judgement: their tensors were left out")
    return judged.noted(record)


def _earlier_texts(root: Path) -> dict[tuple[int, ...], str]:
    """What an earlier report says the ids mean, for machines without the tokenizer."""
    try:
        report = read_report(root / "report.json")
    except GptqDiffError:
        return {}
    return {r.tokens: r.text for r in report.results if r.text is not None}
