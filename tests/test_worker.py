from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptq_diff import worker
from gptq_diff.capture.products import read_products
from gptq_diff.capture.store import CaptureReader
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.errors import BackendError
from gptq_diff.jobs import EventReader, Events, Job, LinearCall, LinearJob, WorkerSpec, hand_out, round_file
from gptq_diff.launch import Load, Outcome, run_load
from gptq_diff.stage import stage_package

PROMPTS = {"short": (509, 5, 6, 7), "long": tuple(range(100, 160))}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """worker.main sets the number of threads of this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spec_of(model: Path, folder: Path, *kernels: str, prompts: tuple[str, ...] = ("short",)) -> WorkerSpec:
    """Backends are named after their kernels."""
    jobs = tuple(Job(k, k, p, PROMPTS[p], 3, None, str(folder / "captures" / k / p)) for k in kernels for p in prompts)
    return WorkerSpec(
        "transformers", str(model), "float16", "cpu", False, 1, 0, str(folder / "events"), os.getppid(), jobs
    )


def run_main(spec: WorkerSpec, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """The worker's status and events, in this process."""
    spec.write(folder / "spec.json")
    code = worker.main([str(folder / "spec.json")])
    return code, EventReader(Path(spec.events)).new()


def test_every_job_leaves_a_whole_capture(tiny_model: Path, tmp_path: Path) -> None:
    """One load, two kernels, two prompts: four captures with all linears, and events in order."""
    spec = spec_of(tiny_model, tmp_path, "fp16", "exact", prompts=("short", "long"))
    code, events = run_main(spec, tmp_path)
    assert code == 0
    assert [e["event"] for e in events if e["event"] != "step"] == ["loaded", *["job", "done"] * 4, "end"]
    assert [e["job"] for e in events if e["event"] == "done"] == [0, 1, 2, 3]
    assert {e["layers"] for e in events if e["event"] == "job"} == {28}
    assert events[0]["versions"]["torch"] == torch.__version__
    for job in spec.jobs:
        reader = CaptureReader(Path(job.out))
        manifest = reader.manifest
        assert (manifest.backend, manifest.prompt) == (job.backend, job.prompt)
        products = {name: path for name, path in manifest.kernels.items() if "@" not in name}
        assert len(manifest.order) == len(products) == 28
        assert set(products.values()) == {job.kernel}
        assert set(manifest.kernels.values()) == {job.kernel, "bias"}  # of q, k and v
        assert manifest.skipped == {}
        assert manifest.steps == len(manifest.tokens) == 3
        assert reader.tensor(0, manifest.order[0], "in").shape[0] == len(job.token_ids)
        assert reader.tensor(2, manifest.order[-1], "out").shape[0] == 1
        assert len([line for line in reader.stats() if not line["part"]]) == 3 * 28
        assert int(reader.first_logits().argmax()) == manifest.tokens[0]


def test_forced_ids_are_recorded(tiny_model: Path, tmp_path: Path) -> None:
    """A capture says whether it was fed the reference's ids."""
    spec = spec_of(tiny_model, tmp_path, "fp16")
    spec = replace(spec, jobs=(replace(spec.jobs[0], forced=(4, 5)),))
    assert run_main(spec, tmp_path)[0] == 0
    manifest = CaptureReader(Path(spec.jobs[0].out)).manifest
    assert manifest.forced
    assert manifest.steps == 2


def test_progress_is_told_but_not_too_often(tiny_model: Path, tmp_path: Path) -> None:
    """Steps name the layer reached; there are fewer than one in 0.1 s, and one at least."""
    _, events = run_main(spec_of(tiny_model, tmp_path, "fp16"), tmp_path)
    steps = [e for e in events if e["event"] == "step"]
    assert steps[0]["layer"].startswith("model.layers.")
    assert all(b["time"] - a["time"] > 0.09 for a, b in zip(steps, steps[1:]))


def test_an_expected_error_is_an_event_with_its_exit_code(tiny_model: Path, tmp_path: Path) -> None:
    """The second kernel does not exist: the first capture stands, the error says which name."""
    code, events = run_main(spec_of(tiny_model, tmp_path, "fp16", "marlin"), tmp_path)
    assert code == 3
    assert (events[-1]["event"], events[-1]["message"]) == ("error", "there is no kernel called 'marlin'")
    assert CaptureReader(tmp_path / "captures" / "fp16" / "short").manifest.steps == 3


def test_an_unknown_engine_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """Named, before anything is loaded."""
    code, events = run_main(replace(spec_of(tiny_model, tmp_path, "fp16"), engine="tensorrt"), tmp_path)
    assert code == 3
    assert [e["event"] for e in events] == ["error"]
    assert "'tensorrt'" in events[0]["message"]


def test_a_missing_module_is_named_with_its_interpreter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even when it is first needed in the middle of a job; the log has the traceback."""
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    code, events = run_main(spec_of(tiny_model, tmp_path, "fp16"), tmp_path)
    assert code == 3
    assert events[-1]["message"] == f"the interpreter {sys.executable} has no module 'safetensors.torch'"
    assert "install safetensors.torch" in events[-1]["hint"]
    assert "Traceback" in capfd.readouterr().err


def test_a_module_that_is_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM built for another CUDA, say: the loader's own words are the reason, the log has the traceback."""

    def broken(spec: WorkerSpec) -> Engine:
        raise ImportError("libcudart.so.12: cannot open shared object file", name="vllm._C")

    monkeypatch.setattr(worker, "load_engine", broken)
    code, events = run_main(spec_of(tmp_path, tmp_path, "fp16"), tmp_path)
    assert code == 3
    assert events[-1]["message"] == (
        f"the interpreter {sys.executable} cannot import vllm._C: libcudart.so.12: cannot open shared object file"
    )
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_gpu_memory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], wrapped: bool
) -> None:
    """Raised by torch, or by an engine that says more about it; with the traceback in the log either way."""

    def full(spec: WorkerSpec) -> Engine:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        except RuntimeError as e:
            if wrapped:
                raise BackendError(f"the engine does not load this model: {e}", "its log has more") from e
            raise

    monkeypatch.setattr(worker, "load_engine", full)
    code, events = run_main(spec_of(tmp_path, tmp_path, "fp16"), tmp_path)
    assert code == 3
    assert events[-1]["message"] == "ran out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert events[-1]["hint"].startswith("free memory of the GPU")
    assert "Traceback" in capfd.readouterr().err


DOWN = "model.layers.1.mlp.down_proj"


def linear_job(folder: Path, kernel: str, *calls: LinearCall, layer: str = DOWN) -> LinearJob:
    x_MK = torch.randn((6, 256), generator=torch.Generator().manual_seed(1)).to(torch.float16)
    save_file({"x": x_MK}, folder / "x.safetensors")
    return LinearJob(kernel, kernel, layer, str(folder / "x.safetensors"), calls, str(folder / f"{kernel}.y"))


def test_a_linear_by_itself_leaves_its_products(tiny_model: Path, tmp_path: Path) -> None:
    """Calls of another number of rows, repeated, with dirt left in free memory; what was asked for of y is stored."""
    job = linear_job(
        tmp_path, "sim-gptq",
        LinearCall("plain", (0, 1, 2)), LinearCall("many", (3,) * 51, keep=(0, 50)),
        LinearCall("again", (0, 1, 2), repeats=3, dirty=True), LinearCall("nothing", (4,), zero=True),
    )  # fmt: skip
    spec = replace(spec_of(tiny_model, tmp_path, "sim-gptq"), jobs=(job,))
    code, events = run_main(spec, tmp_path)
    assert code == 0
    assert [(e["event"], e.get("job"), e.get("refused")) for e in events] == [
        ("loaded", None, None), ("linear", 0, None), ("linear-done", 0, None), ("end", None, None),
    ]  # fmt: skip
    found = read_products(Path(job.out))
    assert {name: (tuple(p.y_RMN.shape), p.path) for name, p in found.items()} == {
        "plain": ((1, 3, 128), "exllama-fast"), "many": ((1, 2, 128), "exllama-reconstruct"),
        "again": ((3, 3, 128), "exllama-fast"), "nothing": ((1, 1, 128), "exllama-fast"),
    }  # fmt: skip
    assert not found["nothing"].y_RMN.any()
    assert all(torch.equal(y_MN, found["plain"].y_RMN[0]) for y_MN in found["again"].y_RMN)
    engine = HfEngine(LoadSpec("transformers", tiny_model, "float16", "cpu", False, 1, 0))
    engine.use_kernel("sim-gptq")
    x_MK = load_file(tmp_path / "x.safetensors")["x"]
    assert torch.equal(found["plain"].y_RMN[0], engine.multiply(DOWN, x_MK[:3]).y_MN)


def test_a_linear_that_cannot_be_run_costs_its_job_alone(tiny_model: Path, tmp_path: Path) -> None:
    """A layer that is not there, a kernel that is not there: told with the reason, and the next job goes on."""
    call = LinearCall("c", (0,))
    jobs = (
        linear_job(tmp_path, "fp16", call, layer="lm_head"), linear_job(tmp_path, "marlin", call),
        linear_job(tmp_path, "exact", call),
    )  # fmt: skip
    code, events = run_main(replace(spec_of(tiny_model, tmp_path, "fp16"), jobs=jobs), tmp_path)
    assert code == 0
    assert [e["refused"] for e in events if e["event"] == "linear-done"] == [
        "the present kernel does not run lm_head", "there is no kernel called 'marlin'", None,
    ]  # fmt: skip
    assert read_products(tmp_path / "exact.y")["c"].path == "exact"


def test_further_jobs_are_worked_through_round_after_round(tiny_model: Path, tmp_path: Path) -> None:
    """The worker waits for each, and counts its jobs over all of them; an empty one ends it."""
    spec = replace(spec_of(tiny_model, tmp_path, "fp16"), follow_up=str(tmp_path))
    first = linear_job(tmp_path, "fp16", LinearCall("c", (0,)))
    capture = replace(spec.jobs[0], prompt="other", out=str(tmp_path / "other"))
    hand_out([first], round_file(tmp_path, 1))
    hand_out([capture], round_file(tmp_path, 2))
    hand_out([], round_file(tmp_path, 3))
    code, events = run_main(spec, tmp_path)
    assert code == 0
    told = [(e["event"], e.get("job", e.get("round"))) for e in events if e["event"] not in ("step", "loaded")]
    assert told == [
        ("job", 0), ("done", 0), ("waiting", 1), ("linear", 1), ("linear-done", 1), ("waiting", 2), ("job", 2),
        ("done", 2), ("waiting", 3), ("end", None),
    ]  # fmt: skip
    assert CaptureReader(Path(capture.out)).manifest.prompt == "other"


def test_rounds_come_as_files_while_the_worker_waits(tiny_model: Path, tmp_path: Path, staged: Path) -> None:
    """The real worker in a process of its own; the parent plans with what the captures are."""
    asked: list[int] = []

    def plan(found: Sequence[Outcome]) -> list[LinearJob]:
        asked.append(len(found[0].followed))
        assert CaptureReader(tmp_path / "captures" / "fp16" / "short").manifest.steps == 3
        return [linear_job(tmp_path, "fp16", LinearCall("c", (0,)))] if len(asked) == 1 else []

    load = load_of(spec_of(tiny_model, tmp_path, "fp16"), tmp_path, staged)
    (outcome,) = run_load(load, lambda backend, event: None, plan)
    assert (outcome.failure, outcome.further_failure, asked) == (None, None, [0, 1])
    assert read_products(Path(outcome.followed[0]))["c"].path == "fp16"


def test_gpu_memory_is_told_after_loading_and_after_every_job(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each figure is the peak since the one before."""
    peaks = iter([10, 30, 20])
    monkeypatch.setattr("gptq_diff.engines.device.gpu_peak", lambda: next(peaks))
    _, events = run_main(spec_of(tiny_model, tmp_path, "fp16", "exact"), tmp_path)
    assert [e["gpu"] for e in events if e["event"] in ("loaded", "done")] == [10, 30, 20]


def test_a_capture_directory_that_cannot_be_written_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    """With the path and the reason."""
    spec = spec_of(tiny_model, tmp_path, "fp16")
    (tmp_path / "captures").write_text("a file in the way")
    code, events = run_main(spec, tmp_path)
    assert code == 3
    assert events[-1]["message"] == f"{spec.jobs[0].out} cannot be written: Not a directory"


def test_a_linear_that_does_not_run_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that bypasses the tap on one layer must not leave a capture that looks whole."""

    class Bypassing(Engine):
        skipped: dict[str, str] = {}
        tapped = frozenset(("a", "b"))

        def use_kernel(self, name: str) -> None:
            pass

        def versions(self) -> dict[str, str]:
            return {}

        def generate(self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: Any, tap: Any) -> Generation:
            tap.begin_step(0)
            tap.record("a", torch.ones(1, 2), torch.ones(1, 3), "fast")
            tap.end_step()
            raise AssertionError("the tap did not notice")

    monkeypatch.setattr(worker, "load_engine", lambda spec: Bypassing())
    spec = spec_of(tmp_path, tmp_path, "fp16")
    code, events = run_main(spec, tmp_path)
    assert code == 3
    assert events[-1]["message"] == "1 of 2 quantised linears did not run in step 0, the first is b"
    assert not (Path(spec.jobs[0].out) / "manifest.json").exists()


def test_an_unexpected_error_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on as a traceback, for the log."""

    def broken(spec: WorkerSpec, events: Events) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(worker, "work", broken)
    spec = spec_of(tmp_path, tmp_path, "fp16")
    spec.write(tmp_path / "spec.json")
    with pytest.raises(RuntimeError):
        worker.main([str(tmp_path / "spec.json")])
    assert EventReader(Path(spec.events)).new() == []


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One staged package for all, so that what numba compiles is found there the second time."""
    return stage_package(tmp_path_factory.mktemp("staged"))


def load_of(spec: WorkerSpec, folder: Path, staged: Path, python: str | Path = sys.executable) -> Load:
    return Load(Path(python), staged, folder / "log", 120, {}, spec)


def outcomes(load: Load) -> dict[str, Outcome]:
    return {o.backend: o for o in run_load(load, lambda backend, event: None)}


def test_end_to_end_in_a_process_of_its_own(tiny_model: Path, tmp_path: Path, staged: Path) -> None:
    """The real worker under the launcher: a kernel that does not exist costs its own backend; memory is known."""
    found = outcomes(load_of(spec_of(tiny_model, tmp_path, "fp16", "marlin"), tmp_path, staged))
    assert found["marlin"].failure == "there is no kernel called 'marlin'; see `gptq-diff backends`"
    assert found["fp16"].failure is None
    assert found["fp16"].finished == ["short"]
    assert CaptureReader(tmp_path / "captures" / "fp16" / "short").manifest.steps == 3
    assert found["fp16"].versions["torch"] == torch.__version__
    assert found["fp16"].memory.private is not None and found["fp16"].memory.private > 10**7


LIMITED = """#!/bin/sh
ulimit {option} {value}
exec {python} "$@"
"""


def limited(folder: Path, option: str, value: int) -> Path:
    """Our interpreter under a limit of the shell's."""
    place = folder / "limited-python"
    place.write_text(LIMITED.format(option=option, value=value, python=sys.executable))
    place.chmod(0o755)
    return place


def test_a_full_disk_is_one_sentence(tiny_model: Path, tmp_path: Path, staged: Path) -> None:
    """No file may grow beyond 300 kB: the block that did not fit is named, and nothing looks whole."""
    spec = spec_of(tiny_model, tmp_path, "fp16", prompts=("long",))
    found = outcomes(load_of(spec, tmp_path, staged, limited(tmp_path, "-f", 600)))["fp16"]
    block = Path(spec.jobs[0].out) / "block-000.safetensors"
    assert found.failure is not None
    assert found.failure.startswith(f"{block} cannot be written: File too large; free some space")
    assert found.finished == []


TOO_LARGE = """
import sys
import time
from gptq_diff import worker
from gptq_diff.kernels.fp16 import Fp16Kernel

def multiply(self, x_MK, linear):
    import torch
    return torch.empty(2**50)

Fp16Kernel.multiply = multiply
sys.exit(worker.main(sys.argv[3:]))
"""


def test_running_out_of_memory_is_told_from_the_log(tiny_model: Path, tmp_path: Path, staged: Path) -> None:
    """torch's RuntimeError comes out as the log's own line."""
    (tmp_path / "script.py").write_text(TOO_LARGE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "script.py"} "$@"\n')
    python.chmod(0o755)
    found = outcomes(load_of(spec_of(tiny_model, tmp_path, "fp16"), tmp_path, staged, python))["fp16"]
    assert found.failure is not None
    assert found.failure.startswith("its worker ended with status 1: RuntimeError: ")
    assert "can't allocate memory: you tried to allocate 4503599627370496 bytes" in found.failure


def python39() -> Path | None:
    """A Python 3.9 that starts, on PATH or among pyenv's."""
    candidates = [shutil.which("python3.9"), *sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]
    for candidate in filter(None, candidates):
        done = subprocess.run([str(candidate), "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
        if done.stdout.strip() == b"(3, 9)":
            return Path(candidate)
    return None


def test_python_3_9_without_torch_is_a_reason(tmp_path: Path, staged: Path) -> None:
    """The oldest interpreter a worker supports runs far enough to say what it lacks, and who lacks it."""
    python = python39()
    if python is None:
        pytest.skip("no Python 3.9 on this machine")
    found = outcomes(load_of(spec_of(tmp_path, tmp_path, "fp16", "exact"), tmp_path, staged, python))
    reasons = [outcome.failure or "" for outcome in found.values()]
    assert reasons[0] == reasons[1]
    who, _, what = reasons[0].partition(" has ")
    assert Path(who.removeprefix("the interpreter ")).resolve() == python.resolve()
    assert what == "no module 'torch'; install torch there, or name another interpreter"


STUBS = """
import importlib, json, pathlib, sys, types

class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Thing

class Thing(metaclass=Anything):
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): return Thing()
    def __getattr__(self, name): return Thing()
    def __class_getitem__(cls, item): return cls
    def __getitem__(self, item): return Thing()
    def _same(self, *args): return self
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _same
    __truediv__ = __rtruediv__ = __pow__ = __neg__ = _same

class Stub(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Thing

STUBBED = {"torch", "numpy", "safetensors", "transformers", "huggingface_hub", "numba", "llvmlite", "vllm"}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in STUBBED:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec): return Stub(spec.name)
    def exec_module(self, module): pass

import importlib.machinery
sys.meta_path.insert(0, Finder())
root = pathlib.Path(sys.argv[1])
for folder in ("capture", "checkpoint", "engines", "kernels", "numerics"):
    for file in sorted((root / "gptq_diff" / folder).rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts)
        importlib.import_module(name[: -len(".__init__")] if name.endswith(".__init__") else name)
        print(name)
"""


def test_every_module_of_a_worker_can_be_imported_by_python_3_9(tmp_path: Path, staged: Path) -> None:
    """With stand-ins for torch and its friends: what is evaluated at import, `X | None` say, must be 3.9's."""
    python = python39()
    if python is None:
        pytest.skip("no Python 3.9 on this machine")
    done = subprocess.run(
        [str(python), "-c", STUBS, str(staged)],
        env={"PYTHONPATH": str(staged)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    assert "gptq_diff.engines.hf" in done.stdout


def test_progress_events_can_be_read_as_json(tmp_path: Path) -> None:
    """One object a line, flushed at once."""
    events = Events(tmp_path / "events")
    events.say("job", job=1)
    assert json.loads((tmp_path / "events").read_text())["job"] == 1


def test_a_worker_without_a_spec_imports_its_engine_and_waits(tmp_path: Path) -> None:
    """The draft says which engine; what has to be done, and where events go, comes later."""
    draft, spec_file = tmp_path / "draft.json", tmp_path / "spec.json"
    spec = spec_of(tmp_path, tmp_path, "fp16")
    replace(spec, jobs=(), model="/nowhere", parent=os.getpid()).write(draft)
    code = "import sys; from gptq_diff import worker; sys.exit(worker.main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, str(spec_file), str(draft)], stderr=subprocess.PIPE)
    maps = Path(f"/proc/{child.pid}/maps")
    until = time.monotonic() + 60
    while "libtorch" not in maps.read_text():
        assert time.monotonic() < until, "it did not import the engine"
        time.sleep(0.05)
    assert child.poll() is None
    replace(spec, model=str(tmp_path / "no-model")).write(tmp_path / "part")
    (tmp_path / "part").rename(spec_file)
    assert child.wait(timeout=60) == 2
    (event,) = EventReader(Path(spec.events)).new()
    assert (event["event"], "no-model" in event["message"]) == ("error", True)


def test_what_the_draft_names_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load will say so, with its reason."""

    def missing(spec: object) -> None:
        raise ImportError("no such engine")

    monkeypatch.setattr("gptq_diff.engines.catalogue.prepare_engine", missing)
    monkeypatch.setattr(worker, "end_with_parent", lambda parent: None)
    (tmp_path / "spec.json").touch()
    worker.wait_prepared(spec_of(tmp_path, tmp_path, "fp16"), tmp_path / "spec.json")
