"""The first half of the main job: every backend through its worker, captures on disk, run.json kept true."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable

import platformdirs

import gptq_diff
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.environment import environment
from gptq_diff.jobs import Job, WorkerSpec
from gptq_diff.launch import Listener, Load, Outcome, run_load
from gptq_diff.records import ORIGINAL, ModelInfo
from gptq_diff.session.asked import CACHING, Asked, Backend, BackendRecord, RunRecord
from gptq_diff.session.devices import device_of, gpu_variables
from gptq_diff.session.live_load import Live
from gptq_diff.session.live_subjects import OFF
from gptq_diff.session.original import original_info
from gptq_diff.session.workarounds import ROWS
from gptq_diff.stage import stage_package
from gptq_diff.worker_process import Early

SHARING = frozenset({"vllm"})
"""Engines that can share a model out among ranks."""
TARGETED = "-targeted"
SIMULATORS = frozenset({"sim-exllama-targeted", "sim-gptq-targeted"})
"""Kernel modes that simulate some calls alone."""
NOTHING_TO_FORCE = "not run: --teacher-force feeds it the reference's ids, and the reference did not finish"

Ended = Callable[[RunRecord, Sequence[str]], None]
"""Is told how far the run has come, and which backends' load has just ended."""


def untold(record: RunRecord, backends: Sequence[str]) -> None:
    """An `Ended` that does nothing with it."""


def cache_dir() -> Path:
    """The user's cache directory for this tool."""
    return Path(platformdirs.user_cache_dir("gptq-diff"))


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


def loads_of(asked: Asked) -> list[list[Backend]]:
    """Backends that can share one load of an engine: the reference's load first, then in the order they were asked."""
    first = [b for b in asked.backends if b.name == asked.reference]
    shared: dict[tuple[str, ...], list[Backend]] = {}
    for b in asked.backends:
        if b.name != asked.reference:
            shared.setdefault(b.load, []).append(b)
    return [*([first] if first else []), *shared.values()]


def capture_all(
    asked: Asked, run: RunDir, record: RunRecord, listen: Listener, live: Live | None = None, *, ahead: bool = False,
    ended: Ended = untold,
) -> RunRecord:  # fmt: skip
    """Run every load; run.json is rewritten after each, so an interrupted run says how far it came.

    live: makes experiments while the engines are there. ahead: start the next load's worker while one is at work, so
    that it has imported its engine by then: worth it where there are cores to spare. ended: told of every load that
    others follow, with the backends of it.
    """
    run.write_run(record.to_json())
    run.write_prompts(asked.prompts)
    staged = stage_package(cache_dir())
    forced: dict[str, tuple[int, ...]] = {}
    loads = loads_of(asked)
    own: Early | None = None
    early: Early | None = None
    try:
        for backends, following in itertools.zip_longest(loads, loads[1:]):
            own, early = early, None
            if ahead and following is not None:
                early = Early(_load(asked, run, staged, following, forced))
            if asked.teacher_force and backends[0].name != asked.reference and len(forced) < len(asked.prompts):
                if own is not None:
                    own.end()
                outcomes = [Outcome(b.name, failure=NOTHING_TO_FORCE) for b in backends]
            else:
                of_load = None if live is None else live.of_load(backends, [p.id for p in asked.prompts])
                started = () if own is None else (own,)
                outcomes = run_load(_load(asked, run, staged, backends, forced), listen, of_load, *started)
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


def _load(asked: Asked, run: RunDir, staged: Path, backends: list[Backend], forced: dict[str, tuple[int, ...]]) -> Load:
    """One worker's spec: backend by backend, prompt by prompt, repeat by repeat.

    With a prefix cache repeat by repeat, prompt by prompt in the order of the file, from an empty cache each: so a
    repeat meets what the first run met.
    """
    first = backends[0]
    caches = asked.prefix_cache and first.engine in CACHING
    repeats = range(1, asked.repeats + 1)
    order = [(p, repeat) for p in asked.prompts for repeat in repeats]
    if caches:
        order = [(p, repeat) for repeat in repeats for p in asked.prompts]
    jobs = tuple(
        Job(
            backend=b.name, kernel=_mode(b.kernel, asked), prompt=p.id, token_ids=p.token_ids,
            max_new_tokens=asked.max_new_tokens, forced=forced.get(p.id), repeat=repeat,
            out=str(run.capture(b.name, p.id, repeat).absolute()),
            plant=None if b.name == asked.reference else asked.plant, forget=caches and p is asked.prompts[0],
        )
        for b in backends for p, repeat in order
    )  # fmt: skip
    model = asked.reference_model if first.name == asked.reference else asked.model
    spec = WorkerSpec(
        engine=first.engine, model=str(model), dtype=first.dtype,
        device=device_of(first.engine, asked.device, first.kernel),
        trust_remote_code=asked.trust_remote_code, threads=asked.threads, seed=asked.seed, events="",
        parent=os.getpid(), jobs=jobs, route=first.route,
        tensor_parallel=asked.tensor_parallel if first.engine in SHARING else 1,
        prefix_cache=caches, room=ROWS + asked.max_new_tokens if asked.workarounds != OFF else 0,
        original=str(asked.original) if first.kernel == ORIGINAL and asked.original is not None else "",
    )  # fmt: skip
    variables = worker_variables(first.engine, asked.device)
    return Load(Path(first.python), staged, run.log(first.name).absolute(), asked.timeout, variables, spec)


def _mode(kernel: str, asked: Asked) -> str:
    """The kernel mode that captures run: a simulator of the fast path is asked only where it matters, if so wanted.

    A planted fault is looked for in every call.
    """
    targeted = f"{kernel}{TARGETED}"
    wanted = asked.simulate == "targeted" and asked.plant is None
    return targeted if wanted and targeted in SIMULATORS else kernel


def worker_variables(engine: str, device: str) -> dict[str, str]:
    """What a worker of that engine finds in its environment."""
    return {
        **gpu_variables(engine, device, os.environ),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NUMBA_CACHE_DIR": str(cache_dir() / "numba"),
        "PYTHONUNBUFFERED": "1",
    }


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
