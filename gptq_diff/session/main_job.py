"""The main job in one place: capture, judge, diagnose, report. Everything else in this package serves these lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Callable, Protocol

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare.judge_run import Key
from gptq_diff.compare.place import judging_device
from gptq_diff.records import Report
from gptq_diff.report.json_report import write_report
from gptq_diff.report.renderings import write_renderings
from gptq_diff.session.asked import Asked, RunRecord
from gptq_diff.session.between_run import judge_intervals
from gptq_diff.session.bfloat16 import try_bfloat16
from gptq_diff.session.capture_all import capture_all, start_record
from gptq_diff.session.compare_run import finished_captures, judge_run, report_run
from gptq_diff.session.decode import Decoder
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.fixed_checkpoint import try_fixed_checkpoint
from gptq_diff.session.headroom_run import measure_headroom
from gptq_diff.session.keep import keep_what_was_asked
from gptq_diff.session.live_load import Live
from gptq_diff.session.live_subjects import OFF
from gptq_diff.session.room import check_room
from gptq_diff.session.workarounds import Padding


class Watcher(Protocol):
    """Is told what happens while it happens."""

    def worker(self, backend: str, event: dict[str, Any]) -> None:
        """An event of a backend's worker."""

    def judging(self, done: int, total: int) -> None:
        """That many linears have been judged."""


def run_job(asked: Asked, run: RunDir, watcher: Watcher) -> Report:
    """Capture every backend, judge every linear, say why, write report.json."""
    with open_checkpoint(asked.model, trust_remote_code=asked.trust_remote_code) as model:
        judge = model
        if asked.reference_model != asked.model:
            judge = open_checkpoint(asked.reference_model, trust_remote_code=asked.trust_remote_code)
        judge.work_device = judging_device(asked.device, judge.layers)
        check_room(asked, model.layers, run.root)
        record = start_record(asked, model, judge)
        padding = None
        if asked.workarounds != OFF:
            padding = Padding(run, asked.prompts, asked.max_new_tokens, asked.reference, judge, model)
        live = Live(run, asked.experiments, asked.reference, judge, model, padding)
        ahead = judge.work_device.type != "cpu"  # a machine with a GPU has cores to spare
        record = capture_all(asked, run, record, watcher.worker, live, ahead=ahead)
        return compare_and_write(run, record, judge, model, watcher, live.judged, asked)


def compare_and_write(
    run: RunDir, record: RunRecord, judge: Checkpoint, loaded: Checkpoint, watcher: Watcher,
    known: Mapping[Key, float] = MappingProxyType({}), asked: Asked | None = None,
) -> Report:  # fmt: skip
    """Judge, say why, report, drop tensors that --capture does not ask for: last, since all else reads them.

    known: as in judge_run. asked: for workarounds that need loads of their own; None for none.
    """
    captures = finished_captures(record, run)
    with beside(partial(measure_headroom, run, record, captures, judge, loaded), on=judge.work_device):
        record = judge_run(run, record, judge, loaded, watcher.judging, known).noted(record)
        record = judge_intervals(run, record, captures, judge)
        diagnose_run(run, record, judge, loaded)
    decoder = Decoder(loaded.path)
    report = report_run(run, record, decoder)
    if asked is not None and _further_loads(asked, run, report, loaded, watcher):
        report = report_run(run, record, decoder)
    left_out = keep_what_was_asked(run, record)
    return write(run, replace(record, left_out=left_out, state="finished"), replace(report, left_out=left_out))


@contextlib.contextmanager
def beside(work: Callable[[], None], *, on: torch.device) -> Iterator[None]:
    """Do that beside what is done inside, where a GPU makes its sums; else afterwards. Raises what it raised."""
    if on.type == "cpu":
        yield
        work()
        return
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(work)
        yield
        done.result()


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
