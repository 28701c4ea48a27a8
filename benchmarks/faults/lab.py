"""Runs in this process: the transformers engine is loaded here, what is planted in it is taken out again."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.draw import FAST_ROWS, PATHS, Drawn
from benchmarks.faults.healthy import SPLIT_K, SplitK
from benchmarks.faults.models import ModelChoice
from gptq_diff.capture.store import CaptureReader
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.faults.checkpoint import Stored, copy_of
from gptq_diff.faults.fault import Fault, Floats
from gptq_diff.faults.kernel import PlantedKernel
from gptq_diff.jobs import Events, Job
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.models.options import BuildOptions
from gptq_diff.models.place import cache_root
from gptq_diff.records import LayerSpec
from gptq_diff.session.asked import Backend
from gptq_diff.worker import run_job

REFERENCE = Backend("hf-fp32", "transformers", "exact", "float32", sys.executable)
BACKENDS = {
    "fp16": "hf-fp16",
    "sim-exllama": "sim-exllama",
    "sim-reconstruct": "sim-reconstruct",
    "sim-gptq": "sim-gptq",
}
"""Kernel -> preset."""
BYTES_ONLY = frozenset({"accumulator-overflow", "result-overflow", "nan-weights"})
ENGINE_ONLY = frozenset({"clamp", "race-or-uninitialised", "row-path", "all-reduce"})


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk that the models lie on, so that copies can be links."""
    root = cache_root() / "faults"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(path: Path, dtype: str, threads: int) -> HfEngine:
    """The engine with that checkpoint in it."""
    spec = LoadSpec("transformers", path, dtype, "cpu", trust_remote_code=False, threads=threads, seed=0)
    return HfEngine(spec)


class Lab:
    """The `Place` in this process; sound models, their engines and kernels are kept."""

    name = "process"
    whole = False
    """Whether copies of checkpoints are one file again, as every engine reads it."""

    def __init__(self, folder: Path, small: float) -> None:
        folder.mkdir()
        self.folder, self.small = folder, small
        self.stored = lru_cache(maxsize=None)(lambda choice: Stored(choice.path()))
        self._engines = lru_cache(maxsize=12)(load)
        self._kernels = lru_cache(maxsize=12)(lambda path, name: make_kernel(name))  # noqa: ARG005  one a model
        self._inputs = lru_cache(maxsize=8)(self._healthy)
        self._count = 0

    def engine(self, path: Path, dtype: str, threads: int = 2) -> HfEngine:
        """The engine with that checkpoint in it; kept for sound models, since copies come and go."""
        return load(path, dtype, threads) if self._passing(path) else self._engines(path, dtype, threads)

    def kernel(self, path: Path, name: str) -> Kernel:
        """A kernel for that checkpoint, kept with the weights that it has unpacked."""
        return make_kernel(name) if self._passing(path) else self._kernels(path, name)

    def _passing(self, path: Path) -> bool:
        return self.folder in path.parents

    def usable(self, options: BuildOptions) -> bool:  # noqa: ARG002
        """This engine takes every model."""
        return True

    def kernels(self, choice: ModelChoice) -> tuple[str, ...]:
        """Those that refuse no linear of it."""
        specs = self.engine(choice.path(), "float16")._checkpoint.layers
        return tuple(name for name in BACKENDS if all(_takes(name, spec) for spec in specs))

    def path(self, kernel: str, bits: int, rows: int) -> str:
        """The arithmetic that a call of so many rows takes."""
        if kernel == "sim-gptq":
            kernel = "sim-exllama" if rows <= FAST_ROWS[bits] else "sim-reconstruct"
        return PATHS[kernel]

    def ways(self, kind: str) -> tuple[str, ...]:
        """Both, but for kinds that only one of them has."""
        if kind in BYTES_ONLY:
            return ("bytes",)
        return ("engine",) if kind in ENGINE_ONLY else ("bytes", "engine")

    def takes(self, fault: Fault) -> bool:  # noqa: ARG002
        """Whether it can be planted here as it was drawn."""
        return True

    def backend(self, drawn: Drawn) -> Backend:
        """What runs."""
        kernel = drawn.run.kernel
        return Backend(BACKENDS[kernel], "transformers", kernel, drawn.run.dtype, sys.executable)

    def captures(
        self, path: Path, drawn: Drawn, backend: Backend, jobs: Sequence[Job], seed: int
    ) -> list[CaptureReader]:
        """Every job on that checkpoint, with what is planted in the engine."""
        engine = self.engine(path, backend.dtype)
        with planted(engine, backend.kernel, self.kernel(path, backend.kernel), drawn, seed):
            return [capture(engine, job, self.folder) for job in jobs]

    def close(self) -> None:
        """Nothing to end."""

    def inputs(self, choice: ModelChoice, prompt: tuple[int, ...], layer: str) -> Floats:
        """The healthy x of the prefill, by the float16 kernel."""
        found: Floats = self._inputs(choice, prompt)[layer]
        return found

    def _healthy(self, choice: ModelChoice, prompt: tuple[int, ...]) -> dict[str, Floats]:
        engine = self.engine(choice.path(), "float16")
        engine.install(self.kernel(choice.path(), "fp16"))
        out = self.fresh("inputs")
        job = Job("hf-fp16", "fp16", "p1", prompt, 1, None, str(out))
        reader = capture(engine, job, out.parent)
        kept = {name: reader.tensor(0, name, "in").float().numpy().copy() for name in reader.manifest.order}
        reader.close()
        shutil.rmtree(out)
        return kept

    def fresh(self, what: str) -> Path:
        """A path that nothing stands at."""
        self._count += 1
        return self.folder / f"{what}-{self._count}"


@cache
def _takes(name: str, spec: LayerSpec) -> bool:
    return bool(make_kernel(name).supports(spec).ok)


def capture(engine: Any, job: Job, folder: Path) -> CaptureReader:
    """One prompt, as a worker captures it."""
    run_job(engine, job, Events(folder / "events.jsonl"), 0)
    return CaptureReader(Path(job.out))


@contextlib.contextmanager
def planted(engine: Any, kernel_name: str, sound_kernel: Any, drawn: Drawn, seed: int) -> Iterator[None]:
    """The engine with this kernel, and whatever of the faults is planted in an engine."""
    fresh: Callable[[], Any] = lambda: make_kernel(kernel_name)  # noqa: E731
    kernel = sound_kernel
    if any(f.misread or f.spoil for f in drawn.faults):
        kernel = PlantedKernel(kernel, fresh, drawn.faults)
    if drawn.run.extra == SPLIT_K:
        kernel = SplitK(kernel, np.random.default_rng(seed))
    threads = torch.get_num_threads()
    if drawn.run.threads:
        torch.set_num_threads(drawn.run.threads)
    engine.install(kernel)
    with contextlib.ExitStack() as undo:
        for fault in drawn.faults:
            if fault.patch is not None:
                undo.enter_context(fault.patch(engine._model))
        try:
            yield
        finally:
            engine.install(sound_kernel)
            torch.set_num_threads(threads)


def checkpoints(lab: Lab, drawn: Drawn, folder: Path) -> tuple[Path, Path]:
    """(what the backend loads, what the reference and the judge read): one path where they are the same."""
    sound = lab.stored(drawn.run.model)
    prepared = {k: v for fault in drawn.faults for k, v in fault.prepared.items()}
    changed = {k: v for fault in drawn.faults for k, v in fault.changed.items()}
    settings = {k: v for fault in drawn.faults for k, v in fault.settings.items()}
    base = sound.path
    if prepared:
        base = copy_of(sound, prepared, {}, folder / "sound", whole=lab.whole)
    if not changed and drawn.run.extra != "linked copy":
        return base, base
    return copy_of(Stored(base), changed, settings, folder / "damaged", whole=lab.whole), base
