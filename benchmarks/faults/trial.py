"""One drawn run from beginning to end: plant, capture, judge, diagnose, and what the report then says.

The main job without its headroom, which costs time and names no cause.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.draw import Drawn, Overlay, draw_fault
from benchmarks.faults.effect import Effects, Seen, as_json, effects_of, unread
from benchmarks.faults.healthy import draw_healthy
from benchmarks.faults.lab import REFERENCE, Lab, checkpoints
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.faults.fault import Fault
from gptq_diff.jobs import Job
from gptq_diff.records import Prompt
from gptq_diff.session.asked import Asked, Backend, RunRecord
from gptq_diff.session.between_run import judge_intervals
from gptq_diff.session.capture_all import start_record
from gptq_diff.session.compare_run import judge_run, report_run
from gptq_diff.session.decode import Decoder
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.main_job import write

Json = dict[str, Any]


def trial(lab: Lab, seed: int, number: int, order: int, *, healthy: bool, keep: Path | None = None) -> Json:
    """The record of one run, as results keep it; keep: where the run directory is left to be looked at."""
    started = time.perf_counter()
    drawn = draw_healthy(lab, seed, number) if healthy else draw_fault(lab, seed, number, order)
    drawing = time.perf_counter() - started
    folder = lab.fresh("trial")
    folder.mkdir()
    try:
        report, effects = run_drawn(lab, drawn, folder, seed * 1_000_003 + number)
        if keep is not None:
            shutil.copytree(folder, keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took = {"draw": round(drawing, 2), "all": round(time.perf_counter() - started, 2)}
    return {**of_drawn(drawn, effects, healthy=healthy), **of_report(report), "seconds": took}


def run_drawn(lab: Lab, drawn: Drawn, folder: Path, seed: int) -> tuple[Json, Effects]:
    """(report.json, the planted effects)."""
    model, sound = checkpoints(lab, drawn, folder)
    run = RunDir.create(folder / "run", overwrite=False)
    backend = lab.backend(drawn)
    asked = asked_of(drawn, model, sound, (REFERENCE, backend))
    with contextlib.ExitStack() as open_:
        judge = open_.enter_context(open_checkpoint(sound))
        loaded = judge if model == sound else open_.enter_context(open_checkpoint(model))
        record = start_record(asked, loaded, judge)
        run.write_prompts(asked.prompts)
        plain = dataclasses.replace(drawn, faults=(), run=dataclasses.replace(drawn.run, extra=""))
        jobs = {REFERENCE.name: jobs_of(asked, REFERENCE, run, None)}
        made = {REFERENCE.name: lab.captures(sound, plain, REFERENCE, jobs[REFERENCE.name], seed)}
        written = made[REFERENCE.name][0].manifest.tokens
        jobs[backend.name] = jobs_of(asked, backend, run, written if asked.teacher_force else None)
        made[backend.name] = lab.captures(model, drawn, backend, jobs[backend.name], seed)
        healthy = None
        if any(fault.between for fault in drawn.faults):
            alone = dataclasses.replace(jobs[backend.name][0], out=str(folder / "healthy"))
            (healthy,) = lab.captures(sound, plain, backend, [alone], seed)
        record = captured(record, {name: [job.key for job in done] for name, done in jobs.items()})
        view = Overlay(lab.stored(drawn.run.model), Fault("", "", (), prepared=all_prepared(drawn)))
        seen = Seen(made[backend.name][0], made[REFERENCE.name][0], healthy)
        effects = effects_of(drawn.faults if drawn.drawn_as != "healthy" else (), view, judge, seen)
        for reader in sum(made.values(), [healthy] if healthy else []):
            reader.close()
        keys = finished_captures(record, run)
        record = judge_run(run, record, keys, judge, loaded, lambda *_: None).noted(record)
        record = judge_intervals(run, record, keys, judge)
        diagnose_run(run, record, keys, judge, loaded)
        write(run, dataclasses.replace(record, state="finished"), report_run(run, record, Decoder(None)))
    run.release()
    return json.loads((run.root / "report.json").read_text(encoding="utf-8")), effects


def all_prepared(drawn: Drawn) -> dict[str, Any]:
    """What both checkpoints have."""
    return {name: array for fault in drawn.faults for name, array in fault.prepared.items()}


def asked_of(drawn: Drawn, model: Path, sound: Path, backends: tuple[Backend, ...]) -> Asked:
    """What a user would have asked for."""
    ids = drawn.run.prompt
    digest = hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()
    return Asked(
        model=model, reference_model=sound, prompts=(Prompt("p1", ids, None, digest),), backends=backends,
        reference=REFERENCE.name, capture="full", max_new_tokens=drawn.run.steps,
        repeats=drawn.run.repeats, teacher_force=drawn.run.forced, threads=drawn.run.threads,
    )  # fmt: skip


def jobs_of(asked: Asked, backend: Backend, run: RunDir, forced: tuple[int, ...] | None) -> list[Job]:
    """A job a repeat."""
    (prompt,) = asked.prompts
    return [
        Job(
            backend=backend.name, kernel=backend.kernel, prompt=prompt.id, token_ids=prompt.token_ids,
            max_new_tokens=asked.max_new_tokens, forced=forced, repeat=repeat,
            out=str(run.capture(backend.name, prompt.id, repeat).absolute()),
        )
        for repeat in range(1, asked.repeats + 1)
    ]  # fmt: skip


def captured(record: RunRecord, finished: dict[str, list[str]]) -> RunRecord:
    """The record after all captures."""
    backends = (
        dataclasses.replace(b, finished=tuple(finished[b.name]), versions={"torch": torch.__version__})
        for b in record.backends
    )
    return dataclasses.replace(record, backends=tuple(backends), state="captured")


def of_drawn(drawn: Drawn, effects: Effects, *, healthy: bool) -> Json:
    """What was planted, and in what."""
    run = drawn.run
    planted_ = [
        {
            "kind": fault.kind, "what": fault.what, "layers": list(fault.layers), "at": fault.at,
            "between": None if fault.between is None else dataclasses.asdict(fault.between), "shares": shares,
        }
        for fault, shares in zip(drawn.faults, as_json(effects))
    ]  # fmt: skip
    return {
        "healthy": healthy, "drawn_as": drawn.drawn_as, "way": drawn.way, "place": run.place, "model": str(run.model),
        "kernel": run.kernel, "dtype": run.dtype, "threads": run.threads, "tokens": len(run.prompt),
        "steps": len(run.calls), "repeats": run.repeats,
        "unread": unread(effects),
        "extra": " ".join([run.extra, *(f.what for f in drawn.faults if healthy)]).strip(), "planted": planted_,
    }  # fmt: skip


def first_bad_of(result: Json) -> Json | None:
    """What is scored of it, and what is shown of an alarm."""
    bad = result["first_bad"]
    keys = ("layer", "step", "kind", "path", "excess", "local_l2_rel")
    return None if bad is None else {key: bad.get(key) for key in keys}


def of_report(report: Json) -> Json:
    """What gptq-diff said of the backend, and of the reference."""
    by_name = {result["backend"]: result for result in report["results"]}
    reference = by_name.pop(report["reference"])
    (result,) = by_name.values()
    return {
        "status": result["status"], "reference_status": reference["status"],
        "first_bad": first_bad_of(result), "reference_first_bad": first_bad_of(reference),
        "findings": [
            {"cause": f["cause"], "layer": f["layer"], "confidence": f["confidence"], "evidence": f["evidence"][:3]}
            for f in result["findings"]
        ],
        "reference_findings": [f["cause"] for f in reference["findings"]],
        "worst_excess": result["worst_excess"], "compared": result["layers"]["compared"],
    }  # fmt: skip
