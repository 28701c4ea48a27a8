"""The main job in one place: capture, judge, diagnose, report. Everything else in this package serves these lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare.place import judging_device, room_beside
from gptq_diff.records import Report
from gptq_diff.report.json_report import write_report
from gptq_diff.report.renderings import write_renderings
from gptq_diff.session.asked import OFF, Asked, RunRecord
from gptq_diff.session.behind import Behind, at_once
from gptq_diff.session.bfloat16 import try_bfloat16
from gptq_diff.session.capture_all import capture_all, start_record, untold
from gptq_diff.session.compare_run import report_run
from gptq_diff.session.decode import Decoder
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.fixed_checkpoint import try_fixed_checkpoint
from gptq_diff.session.keep import keep_what_was_asked
from gptq_diff.session.live_load import Live
from gptq_diff.session.loads_judged import LoadsJudged
from gptq_diff.session.room import check_room
from gptq_diff.session.stages import Stages
from gptq_diff.session.workarounds import Padding
from gptq_diff.worker_process import Early


class Watcher(Protocol):
    """Is told what happens while it happens."""

    def worker(self, backend: str, event: dict[str, Any]) -> None:
        """An event of a backend's worker."""

    def judging(self, done: int, total: int) -> None:
        """That many linears have been judged."""


def run_job(asked: Asked, run: RunDir, watcher: Watcher, first: Early | None = None) -> Report:
    """Capture every backend, judge every linear, say why, write report.json.

    first: the first load's worker, where it was started before (session.loads.first_started).
    Where there is room, the captures of a load are judged behind the loads that follow.
    """
    with open_checkpoint(asked.model, trust_remote_code=asked.trust_remote_code) as model:
        judge = model
        if asked.reference_model != asked.model:
            judge = open_checkpoint(asked.reference_model, trust_remote_code=asked.trust_remote_code)
        judge.work_device = judging_device(asked.device, judge.layers)
        check_room(asked, model.layers, run.root)
        record = start_record(asked, model, judge)
        room = room_beside(judge.work_device, judge, model)
        ahead = judge.work_device.type != "cpu"  # a machine with a GPU has cores to spare
        with Behind() as behind:
            padding = None
            if asked.workarounds != OFF:
                later = behind.later if room else at_once
                padding = Padding(run, asked.prompts, asked.max_new_tokens, asked.reference, judge, model, later)
            live = Live(run, asked.experiments, asked.reference, judge, model, padding, behind.alone)
            stages = Stages(run, judge, model, live.judged, watcher.judging)
            loads = LoadsJudged(run, stages.some, behind)
            ended = loads.take if room else untold
            record = capture_all(asked, run, record, watcher.worker, live, ahead=ahead, ended=ended, first=first)
        left = [key for key in finished_captures(record, run) if key not in loads.done]
        record = stages.last(loads.noted(record), left)
        return report_and_write(run, record, model, watcher, asked)


def report_and_write(run: RunDir, record: RunRecord, loaded: Checkpoint, watcher: Watcher, asked: Asked) -> Report:
    """Report, drop tensors that --capture does not ask for: last, since all else reads them."""
    decoder = Decoder(loaded.path)
    report = report_run(run, record, decoder)
    if _further_loads(asked, run, report, loaded, watcher):
        report = report_run(run, record, decoder)
    left_out = keep_what_was_asked(run, record)
    return write(run, replace(record, left_out=left_out, state="finished"), replace(report, left_out=left_out))


def _further_loads(asked: Asked, run: RunDir, report: Report, loaded: Checkpoint, watcher: Watcher) -> bool:
    """Workarounds that need loads of their own; whether any was found out about."""

    def again(asked: Asked, to: RunDir) -> Report:
        return run_job(asked, to, watcher)

    tried = [try_bfloat16(asked, run, report, again), try_fixed_checkpoint(asked, run, report, loaded, again)]
    return any(tried)


def write(run: RunDir, record: RunRecord, report: Report) -> Report:
    """report.json and what is rendered from it, then run.json in its last state."""
    write_report(report, run.root / "report.json")
    write_renderings(report, run.root)
    run.write_run(record.to_json())
    return report
