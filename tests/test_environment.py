from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptq_diff import environment as module
from gptq_diff.environment import environment

CPUINFO = "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags : x\n\nprocessor : 1\nmodel name\t: Other\n"
GPU = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 1\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1\nGCC version: 12\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /proc, empty."""
    monkeypatch.setattr(module, "PROC", tmp_path)
    return tmp_path


def write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_versions_are_those_of_the_packages() -> None:
    """What a report says agrees with what would be imported."""
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == np.__version__
    assert set(facts) >= {"platform", "transformers", "numba", "safetensors", "cpu", "gpu", "cuda"}


def test_processor_and_gpu_are_named(proc: Path) -> None:
    """The first processor, the first GPU in order, and the driver."""
    write(proc / "cpuinfo", CPUINFO)
    write(proc / "driver/nvidia/gpus/0000:02:00.0/information", GPU.replace("H200", "second"))
    write(proc / "driver/nvidia/gpus/0000:01:00.0/information", GPU)
    write(proc / "driver/nvidia/version", DRIVER)
    facts = environment()
    assert facts["cpu"] == "Some CPU @ 2 GHz"
    assert facts["gpu"] == "NVIDIA H200"
    assert facts["cuda"] == "driver 570.1"


def test_what_is_not_there_is_none(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc, no GPU, no package: None, never a guess."""
    monkeypatch.setattr(platform, "processor", lambda: "")
    facts = environment()
    assert (facts["cpu"], facts["gpu"], facts["cuda"]) == (None, None, None)
    assert module._version("no-such-package-anywhere") is None


def test_it_does_not_import_torch() -> None:
    """Versions come from the packages' metadata, so that a report of a finished run starts fast."""
    code = "import sys; from gptq_diff.environment import environment; environment(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
