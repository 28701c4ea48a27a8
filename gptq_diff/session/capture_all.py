"""The first half of the main job: every backend through its worker, captures on disk, run.json kept true."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable

import gptq_diff
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.environment import environment
from gptq_diff.launch import Listener, Outcome, run_load
from gptq_diff.records import ModelInfo
from gptq_diff.session.asked import Asked, BackendRecord, RunRecord
from gptq_diff.session.live_load import Live
from gptq_diff.session.loads import cache_dir, load_of, loads_of
from gptq_diff.session.original import original_info
from gptq_diff.stage import stage_package
from gptq_diff.worker_process import Early

NOTHING_TO_FORCE = "not run: --teacher-force feeds it the reference's ids, and the reference did not finish"

Ended = Callable[[RunRecord, Sequence[str]], None]
"""Is told how far the run has come, and which backends' load has just ended."""


def untold(record: RunRecord, backends: Sequence[str]) -> None:
    """An `Ended` that does nothing with it."""


def start_record(asked: Asked, model: Checkpoint, judge: Checkpoint) -> RunRecord:
    """run.json before anything has run."""
    return RunRecord(
        schema_version=1, gptq_diff=gptq_diff.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        state="running", model=_info(model, full_hash=asked.full_hash),
        reference_model=_info(judge, full_hash=asked.full_hash) if judge is not model else None,
        environment=_environment(asked), reference=asked.reference,
        backends=tuple(BackendRecord(b.name, b.engine, b.kernel, b.dtype, b.python) for b in asked.backends),
        quantized=tuple(s.name for s in judge.layers) + tuple(s.name for s in judge.skipped),
        not_read={s.name: s.reason for s in judge.skipped}, capture=asked.capture,
        capture_budget=asked.capture_budget, repeats=asked.repeats, teacher_force=asked.teacher_force,
        allow_skip=asked.allow_skip, full_hash=asked.full_hash,
        original=None if asked.original is None else original_info(asked.original, full_hash=asked.full_hash),
        sweep=asked.sweep, prefix_cache=asked.prefix_cache, simulate=asked.simulate,
    )  # fmt: skip


def _environment(asked: Asked) -> dict[str, str | None]:
    """What this runs on; a fault that is planted is told with it, so that nobody takes it for the engine's own."""
    facts = environment()
    if asked.plant is not None:
        facts["planted"] = f"{asked.plant.kind} in the kernels of all but the reference, at {asked.plant.layer}"
    return facts


def _info(checkpoint: Checkpoint, *, full_hash: bool) -> ModelInfo:
    return replace(checkpoint.info(), fingerprint=checkpoint.fingerprint(full=full_hash))


def capture_all(
    asked: Asked, run: RunDir, record: RunRecord, listen: Listener, live: Live | None = None, *, ahead: bool = False,
    ended: Ended = untold, first: Early | None = None,
) -> RunRecord:  # fmt: skip
    """Run every load; run.json is rewritten after each, so an interrupted run says how far it came.

    live: makes experiments while the engines are there. ahead: start the next load's worker while one is at work, so
    that it has imported its engine by then: worth it where there are cores to spare. ended: told of every load that
    others follow, with the backends of it. first: a worker of the first load that was started before.
    """
    forced: dict[str, tuple[int, ...]] = {}
    loads = loads_of(asked)
    own: Early | None = None
    early = first
    try:
        run.write_run(record.to_json())
        run.write_prompts(asked.prompts)
        staged = stage_package(cache_dir())
        for backends, following in itertools.zip_longest(loads, loads[1:]):
            own, early = early, None
            if ahead and following is not None:
                early = Early(load_of(asked, run, staged, following, forced))
            if asked.teacher_force and backends[0].name != asked.reference and len(forced) < len(asked.prompts):
                if own is not None:
                    own.end()
                outcomes = [Outcome(b.name, failure=NOTHING_TO_FORCE) for b in backends]
            else:
                of_load = None if live is None else live.of_load(backends, [p.id for p in asked.prompts])
                started = () if own is None else (own,)
                outcomes = run_load(load_of(asked, run, staged, backends, forced), listen, of_load, *started)
                if of_load is not None:
                    of_load.close(outcomes)
            record = _with_outcomes(record, outcomes, run.log(backends[0].name).relative_to(run.root))
            run.write_run(record.to_json())
            if following is not None:
                ended(record, [b.name for b in backends])
            if asked.teacher_force and backends[0].name == asked.reference:
                whole = [p.id for p in asked.prompts if p.id in outcomes[0].finished]
                forced = {p: run.reader(asked.reference, p).manifest.tokens for p in whole}
    except BaseException:
        run.write_run(replace(record, state="interrupted").to_json())
        raise
    finally:
        for waiting in (own, early):
            if waiting is not None:
                waiting.end()
    record = replace(record, state="captured")
    run.write_run(record.to_json())
    return record


def _with_outcomes(record: RunRecord, outcomes: list[Outcome], log: Path) -> RunRecord:
    known = {o.backend: o for o in outcomes}

    def update(b: BackendRecord) -> BackendRecord:
        o = known.get(b.name)
        if o is None:
            return b
        return replace(
            b, failure=o.failure, log_end=o.log_end, finished=tuple(o.finished), versions=o.versions, seconds=o.seconds,
            memory=o.memory, log=str(log),
        )  # fmt: skip

    return replace(record, backends=tuple(update(b) for b in record.backends))
