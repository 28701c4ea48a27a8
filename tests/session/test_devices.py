"""What --device comes to for each engine's worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.errors import UsageError
from gptq_diff.launch import Listener, Load, Outcome
from gptq_diff.session import capture_all
from gptq_diff.session.devices import device_of, gpu_variables
from tests.session.in_process import asked, run, run_here


@pytest.mark.parametrize(
    ("engine", "given", "expected"),
    [
        ("transformers", "", "cpu"),
        ("transformers", "cuda:1", "cuda:1"),
        ("transformers", "auto", "auto"),
        ("gptqmodel", "", "auto"),
        ("gptqmodel", "cpu", "cpu"),
        ("auto_gptq", "cuda", "cuda"),
        ("vllm", "", "auto"),
    ],
)
def test_what_is_not_asked_is_each_engines_own(engine: str, given: str, expected: str) -> None:
    """Our own arithmetic stays on the CPU unless somebody asks; engines whose GPU kernels are in question do not."""
    assert device_of(engine, given) == expected


def test_a_releases_kernel_takes_a_gpu_in_the_engine_that_otherwise_would_not() -> None:
    """It runs nowhere else; a --device is obeyed."""
    assert device_of("transformers", "", "vllm==0.20.2:exllama") == "auto"
    assert device_of("transformers", "cuda:1", "vllm==0.20.2:exllama") == "cuda:1"
    assert device_of("transformers", "", "sim-exllama") == "cpu"


@pytest.mark.parametrize(
    ("given", "own", "seen"),
    [
        ("cuda:1", None, "1"),
        ("cuda:1", "", "1"),
        ("cuda:1", "4,6", "6"),
        ("cuda:0", "GPU-8a5f", "GPU-8a5f"),
        ("cuda:2", "4,6", "-1"),  # as CUDA itself has it: no GPU, and the engine says so
        ("cuda", "4,6", None),
        ("auto", None, None),
        ("cpu", None, None),
        ("", None, None),
    ],
)
def test_vllm_is_shown_one_gpu(given: str, own: str | None, seen: str | None) -> None:
    """It takes the first that it sees; N counts what the user's own variable leaves, as torch's cuda:N does."""
    environment = {} if own is None else {"CUDA_VISIBLE_DEVICES": own}
    assert gpu_variables("vllm", given, environment).get("CUDA_VISIBLE_DEVICES") == seen
    assert "CUDA_VISIBLE_DEVICES" not in gpu_variables("transformers", given, environment)


def test_workers_are_told(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec has the device, the environment forbids TF32, whatever the user's own says."""
    loads: list[Load] = []

    def watched(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
        loads.append(load)
        return run_here(load, listen)

    monkeypatch.setattr(capture_all, "run_load", watched)
    run(asked(small_model, "hf-fp16", device="auto"), tmp_path / "run")
    assert [(load.spec.device, load.environment["NVIDIA_TF32_OVERRIDE"]) for load in loads] == [("auto", "0")] * 2


def test_a_gpu_that_is_not_there_costs_its_backends(
    small_model: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the worker's torch can tell; the reason names what was asked for and what it sees."""
    monkeypatch.setattr("gptq_diff.hosts._GPU_SIGNS", ("/",))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    report = run(asked(small_model, "hf-fp16", device="cuda:3"), tmp_path / "run")
    assert report.results == ()
    assert [s.backend for s in report.skipped_backends] == ["hf-fp32", "hf-fp16"]
    assert all("there is no cuda:3 for torch" in s.reason for s in report.skipped_backends)


def test_what_can_be_told_at_once_is_refused_at_once(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver, so no GPU; one GPU for several ranks."""
    monkeypatch.setattr("gptq_diff.hosts._GPU_SIGNS", ("/no/such/device",))
    with pytest.raises(UsageError, match="--device cuda: there is no NVIDIA GPU here"):
        asked(small_model, device="cuda")
    assert asked(small_model, device="auto").device == "auto"
    monkeypatch.setattr("gptq_diff.hosts._GPU_SIGNS", ("/",))
    with pytest.raises(UsageError, match="cuda:1 is one GPU, and --tensor-parallel-size asks for 2"):
        asked(small_model, device="cuda:1", tensor_parallel=2)
    assert asked(small_model, device="cuda", tensor_parallel=2).tensor_parallel == 2
