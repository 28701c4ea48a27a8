"""What a worker is told: the backends that share one load of an engine, its jobs, and its environment.

Without torch: the first worker is on its way while this process still imports it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.jobs import Job, WorkerSpec
from gptq_diff.records import ORIGINAL
from gptq_diff.session.asked import CACHING, OFF, Asked, Backend
from gptq_diff.session.devices import device_of, gpu_variables
from gptq_diff.stage import stage_package
from gptq_diff.worker_process import Early, Load

SHARING = frozenset({"vllm"})
"""Engines that can share a model out among ranks."""
TARGETED = "-targeted"
SIMULATORS = frozenset({"sim-exllama-targeted", "sim-gptq-targeted"})
"""Kernel modes that simulate some calls alone."""
ROWS = 51
"""Tokens that a padded prompt has: one more than exllama's fused path takes (24 or 50 rows)."""


def cache_dir() -> Path:
    """The user's cache directory for this tool."""
    return Path(platformdirs.user_cache_dir("gptq-diff"))


def loads_of(asked: Asked) -> list[list[Backend]]:
    """Backends that can share one load of an engine: the reference's load first, then in the order they were asked."""
    first = [b for b in asked.backends if b.name == asked.reference]
    shared: dict[tuple[str, ...], list[Backend]] = {}
    for b in asked.backends:
        if b.name != asked.reference:
            shared.setdefault(b.load, []).append(b)
    return [*([first] if first else []), *shared.values()]


def load_of(
    asked: Asked, run: RunDir, staged: Path, backends: list[Backend], forced: dict[str, tuple[int, ...]]
) -> Load:
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


@contextlib.contextmanager
def first_started(asked: Asked, run: RunDir) -> Iterator[Early]:
    """The worker of the first load, on its way: it imports its engine while this process imports what it needs.

    Ended with the context, unless its load has taken it. Of a run that ends before there is a run.json its log goes:
    the directory is as empty as it was, and can be given again.
    """
    load = load_of(asked, run, stage_package(cache_dir()), loads_of(asked)[0], {})
    first: Early | None = None
    try:
        first = Early(load)
        yield first
    finally:
        if first is not None:
            first.end()
        if not (run.root / "run.json").is_file():
            shutil.rmtree(load.log.parent, ignore_errors=True)
