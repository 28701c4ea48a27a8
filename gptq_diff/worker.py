"""The child process: `python -m gptq_diff.worker SPEC.json` loads an engine once and works through its jobs.

`... SPEC.json DRAFT.json` starts before there is a spec: it imports what the draft's engine needs, and waits for it.

Runs under any interpreter from Python 3.9 up that has torch, numpy, safetensors and the engine itself.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from gptq_diff.errors import GptqDiffError
from gptq_diff.jobs import AnyJob, Events, Job, LinearJob, WorkerSpec, handed_out, round_file
from gptq_diff.memory import ran_out_of_gpu_memory
from gptq_diff.processes import end_with_parent

if TYPE_CHECKING:
    from gptq_diff.capture.tap import Call
    from gptq_diff.engines.base import Engine, LoadSpec

POLL_SECONDS = 0.02
"""Between two looks for further jobs."""
FREE_SOME = "free memory of the GPU, or give a smaller model, shorter prompts, or another --device"


def load_engine(spec: WorkerSpec) -> Engine:
    """The engine of that name with the model loaded; BackendError when it cannot take it."""
    from gptq_diff.engines.catalogue import engine_named

    return engine_named(spec.engine)(_load_spec(spec))


def _load_spec(spec: WorkerSpec) -> LoadSpec:
    from gptq_diff.engines.base import LoadSpec

    return LoadSpec(
        engine=spec.engine, model=Path(spec.model), dtype=spec.dtype, device=spec.device,
        trust_remote_code=spec.trust_remote_code, threads=spec.threads, seed=spec.seed, route=spec.route,
        longest=spec.longest, tensor_parallel=spec.tensor_parallel, prefix_cache=spec.prefix_cache,
        original=Path(spec.original) if spec.original else None,
    )  # fmt: skip


def progress(events: Events, job: int) -> Callable[[Call], None]:
    """Says which call the worker has reached, at most ten times a second."""
    last = 0.0

    def say(call: Call) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.1:
            last = now
            events.say("step", job=job, step=call.step, index=call.index, layer=call.layer)

    return say


def run_job(engine: Engine, job: Job, events: Events, index: int, earlier: Sequence[tuple[str, Path]] = ()) -> None:
    """Capture one prompt: tensors, statistics, then the manifest.

    earlier: as in Engine.knowing.
    """
    from gptq_diff.capture.store import CaptureWriter, Manifest
    from gptq_diff.capture.tap import Tap

    if job.forget:
        engine.forget()
    started = time.perf_counter()
    writer = CaptureWriter(Path(job.out))
    writer.on_call = progress(events, index)
    with Tap(engine.tapped, writer) as tap, engine.planted(job), engine.knowing(earlier):
        generation = engine.generate(job.token_ids, max_new_tokens=job.max_new_tokens, forced=job.forced, tap=tap)
    writer.close()
    seconds = {"generate": round(time.perf_counter() - started, 4)}
    manifest = Manifest(
        backend=job.backend, prompt=job.prompt, order=tuple(tap.order), kernels=writer.kernels,
        skipped=engine.skipped, steps=generation.steps, tokens=generation.tokens,
        logits_finite=generation.logits_finite, cached_rows=generation.cached_rows, forced=job.forced is not None,
        where=writer.where, bytes_written=writer.bytes_written, seconds=seconds,
    )  # fmt: skip
    writer.finish(manifest, generation.first_logits_V)


Further = Callable[[int], "tuple[AnyJob, ...]"]
"""Waits for that round of further jobs, the first being number 1; none of them ends the work."""


def further_jobs(follow_up: Path) -> Further:
    """Rounds that the parent hands out as files in that directory."""

    def wait(number: int) -> tuple[AnyJob, ...]:
        path = round_file(follow_up, number)
        while (jobs := handed_out(path)) is None:
            time.sleep(POLL_SECONDS)
        return jobs

    return wait


class Hands:
    """Works through jobs on one loaded engine; jobs of one kernel mode follow each other, so it is made once.

    Jobs are told to the parent by their number, counted over all rounds.
    """

    def __init__(self, engine: Engine, events: Events) -> None:
        self._engine = engine
        self._events = events
        self._kernel: str | None = None
        self._captured: list[Job] = []
        self._number = 0

    def work(self, jobs: Sequence[AnyJob]) -> None:
        """All of them, in order."""
        for job in jobs:
            if isinstance(job, LinearJob):
                self._linear(job)
            else:
                self._capture(job)
            self._number += 1

    def _capture(self, job: Job) -> None:
        self._use(job.kernel)
        self._events.say("job", job=self._number, layers=len(self._engine.tapped))
        run_job(self._engine, job, self._events, self._number, self._alike(job))
        self._captured.append(job)
        # by now the engine knows where paths change
        self._events.say("done", job=self._number, versions=self._engine.versions(), gpu=self._engine.gpu_peak())

    def _alike(self, job: Job) -> list[tuple[str, Path]]:
        """Captures of the same prompt by other kernel modes; none where a fault is planted, or a prefix cache kept."""
        if job.plant is not None or job.forget:
            return []
        same = (job.token_ids, job.forced, job.max_new_tokens, job.repeat, None)
        return [
            (other.kernel, Path(other.out)) for other in self._captured
            if (other.token_ids, other.forced, other.max_new_tokens, other.repeat, other.plant) == same
            and other.kernel != job.kernel
        ]  # fmt: skip

    def _linear(self, job: LinearJob) -> None:
        """An expected error costs this job alone: nothing of the engine depends on it."""
        from gptq_diff.engines.linear_calls import run_linear_job

        self._events.say("linear", job=self._number, layer=job.layer, calls=len(job.calls))
        refused = None
        try:
            self._use(job.kernel)
            run_linear_job(self._engine, job)
        except GptqDiffError as e:
            refused = str(e)
        self._events.say("linear-done", job=self._number, refused=refused, gpu=self._engine.gpu_peak())

    def _use(self, kernel: str) -> None:
        if kernel != self._kernel:
            self._kernel = None  # where it fails half-way, none is in force
            self._engine.use_kernel(kernel)
            self._kernel = kernel


def work(spec: WorkerSpec, events: Events, further: Further | None = None) -> None:
    """Load, then every job in order, then round after round of further ones.

    further: where they come from; the files of spec.follow_up, if there is none given.
    """
    started = time.perf_counter()
    engine = load_engine(spec)
    events.say(
        "loaded", seconds=round(time.perf_counter() - started, 3), versions=engine.versions(), gpu=engine.gpu_peak()
    )
    hands = Hands(engine, events)
    hands.work(spec.jobs)
    if further is None and spec.follow_up:
        further = further_jobs(Path(spec.follow_up))
    number = 0
    while further is not None:
        number += 1
        events.say("waiting", round=number)
        jobs = further(number)
        if not jobs:
            break
        hands.work(jobs)
    events.say("end")


def wait_prepared(draft: WorkerSpec, spec_file: Path) -> None:
    """Import the engine's packages, and return once there is a spec; what cannot be imported the load will tell."""
    end_with_parent(draft.parent)
    from gptq_diff.engines.catalogue import prepare_engine

    with contextlib.suppress(ImportError, GptqDiffError):
        prepare_engine(_load_spec(draft))
    while not spec_file.exists():
        time.sleep(POLL_SECONDS)


def main(argv: list[str]) -> int:
    """Run one spec; expected errors become an `error` event, anything else a traceback in the log.

    Engines import their packages when they need them, so a missing one can show at any time.
    """
    spec_file = Path(argv[0])
    if len(argv) > 1:
        wait_prepared(WorkerSpec.read(Path(argv[1])), spec_file)
    spec = WorkerSpec.read(spec_file)
    events = Events(Path(spec.events))
    if len(argv) == 1:
        end_with_parent(spec.parent)
    try:
        work(spec, events)
    except GptqDiffError as e:
        if e.__cause__ is not None:
            traceback.print_exc()
        message = ran_out_of_gpu_memory(e)
        events.say("error", message=message or str(e), hint=FREE_SOME if message else e.hint)
        return e.exit_code
    except ImportError as e:
        traceback.print_exc()
        message, hint = _not_imported(e)
        events.say("error", message=message, hint=hint)
        return 3
    except RuntimeError as e:
        message = ran_out_of_gpu_memory(e)
        if message is None:
            raise
        traceback.print_exc()
        events.say("error", message=message, hint=FREE_SOME)
        return 3
    return 0


def _not_imported(error: ImportError) -> tuple[str, str]:
    """Sentence and hint for a module that is not there, or is there and broken (it wants another CUDA, say)."""
    if isinstance(error, ModuleNotFoundError):
        message = f"the interpreter {sys.executable} has no module {error.name!r}"
        return message, f"install {error.name} there, or name another interpreter"
    return f"the interpreter {sys.executable} cannot import {error.name or 'a module'}: {error}", "its log has more"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
