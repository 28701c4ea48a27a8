"""Comparing a finished capture again: with the checkpoint where there is one, else from what was stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint, resolve_model
from gptq_diff.compare.place import judging_device
from gptq_diff.errors import CheckpointError, GptqDiffError, UsageError
from gptq_diff.launch import Listener
from gptq_diff.records import ModelInfo, Report
from gptq_diff.report.json_report import read_report
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.between_run import judge_intervals
from gptq_diff.session.compare_run import finished_captures, judge_run, report_run
from gptq_diff.session.decode import Decoder
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.headroom_run import measure_headroom
from gptq_diff.session.live_again import Again, Finished, experiments_again
from gptq_diff.session.main_job import write
from gptq_diff.session.unfinished import CAPTURED, alone_with, as_far_as_it_came


def compare_again(
    root: Path, model: str | None, reference_model: str | None, *, allow_skip: bool, say: Callable[[str], None],
    judging: bool = True, live: Again | None = None, listen: Listener = lambda *_: None,
) -> Report:  # fmt: skip
    """Judge and diagnose again what tensors are there; a checkpoint given by hand must be the one of the run.

    judging: False keeps the stored judgements, and says only why bad layers are bad. live: starts engines once more,
    for experiments; listen is told of their workers.
    """
    run = RunDir.open_finished(root)
    with alone_with(run):
        record = RunRecord.from_json(run.run())
        if record.state not in CAPTURED:
            say("this run was interrupted: what is whole is judged, and the rest is named below")
        record = as_far_as_it_came(run, record)
        record = replace(record, allow_skip=record.allow_skip or allow_skip)
        loaded, judge = checkpoints_of(record, model, reference_model)
        if isinstance(loaded, Checkpoint) and isinstance(judge, Checkpoint):
            judge.work_device = judging_device("", judge.layers)
            if judging:
                record = _judged_again(run, record, judge, loaded, say)
                record = judge_intervals(run, record, finished_captures(record, run), judge)
            diagnose_run(run, record, judge, loaded)
            measure_headroom(run, record, finished_captures(record, run), judge, loaded)
            if live is not None:
                experiments_again(Finished(run, record, judge, loaded), live, listen, say)
        else:
            why = loaded if isinstance(loaded, str) else judge
            say(f"nothing is computed again, what is stored is used: {why}; give --model DIR where it lies")
        tokenizer = loaded.path if isinstance(loaded, Checkpoint) else None
        report = report_run(run, record, Decoder(tokenizer, _earlier_texts(root)))
        return write(run, replace(record, state="finished" if record.state in CAPTURED else "interrupted"), report)


def _judged_again(
    run: RunDir, record: RunRecord, judge: Checkpoint, loaded: Checkpoint, say: Callable[[str], None]
) -> RunRecord:
    judged = judge_run(run, record, judge, loaded, lambda *_: None)
    kept = judged.calls - judged.fresh
    if kept:
        say(f"{kept} of {judged.calls} kernel calls keep their stored judgement: their tensors were left out")
    return judged.noted(record)


def checkpoints_of(
    record: RunRecord, model: str | None, reference_model: str | None
) -> tuple[Checkpoint | str, Checkpoint | str]:
    """What the backends loaded and what the judge reads; in place of one that is not there, why."""
    loaded = _find(model, record.model, "--model", full=record.full_hash)
    if record.reference_model is None:
        if reference_model is not None:
            raise UsageError("this run had no --reference-model", "leave it out")
        return loaded, loaded
    return loaded, _find(reference_model, record.reference_model, "--reference-model", full=record.full_hash)


def _find(given: str | None, known: ModelInfo, option: str, *, full: bool) -> Checkpoint | str:
    """The checkpoint of the run: where the user says, or where it was; there it may be gone or changed since."""
    if given is not None:
        found = open_checkpoint(resolve_model(given))
        if found.fingerprint(full) != known.fingerprint:
            raise UsageError(
                f"{option} {given} is not the checkpoint of this run: its fingerprint differs",
                f"the run used {known.path}; give a copy of it",
            )
        return found
    try:
        found = open_checkpoint(Path(known.path))
        fingerprint = found.fingerprint(full)
    except CheckpointError as e:
        return str(e) if Path(known.path).is_dir() else f"the checkpoint {known.path} is not here"
    return found if fingerprint == known.fingerprint else f"the checkpoint {known.path} is another one than in this run"


def _earlier_texts(root: Path) -> dict[tuple[int, ...], str]:
    """What an earlier report says the ids mean, for machines without the tokenizer."""
    try:
        report = read_report(root / "report.json")
    except GptqDiffError:
        return {}
    return {r.tokens: r.text for r in report.results if r.text is not None}
