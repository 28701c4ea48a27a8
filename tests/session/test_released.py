"""A run on a release's kernel: a stand-in that computes what the kernel would, in the place of a compiled library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptq_diff.engines import hf
from gptq_diff.errors import BackendError, UsageError
from gptq_diff.hosts import Here, Host
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.vllm_ops import VllmGemm
from gptq_diff.records import Support
from gptq_diff.releases import MODES
from gptq_diff.session import live_subjects
from gptq_diff.upstream.store import user_store
from tests.kernels.test_vllm_ops import ops_with
from tests.session.in_process import FIRST, SECOND, asked, result, run

pytestmark = pytest.mark.usefixtures("here")

OVERFLOWS = "model.layers.1.mlp.down_proj"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, str]]:
    """Every kernel of a release is there; what was asked for: name, folder of builds, device."""
    wanted = []

    def release_kernel(name: str, builds: Path, device: str) -> Kernel:
        wanted.append((name, builds, device))
        path = MODES["vllm"][name.rpartition(":")[2]]
        return VllmGemm(path, "cpu", ops=ops_with(), name=name)

    monkeypatch.setattr(hf, "release_kernel", release_kernel)
    python = Path("python")
    monkeypatch.setattr(Here, "host_of", lambda self, preset: Host(Support(ok=True), python))
    return wanted


def test_the_fused_path_of_a_release_is_found_out_under_its_name(
    shifted_model: Path, tmp_path: Path, compiled: list[tuple[str, Path, str]]
) -> None:
    """Overflow in the linear that was shifted, judged by the fused path's error model; reconstruct agrees."""
    names = ["vllm==0.20.2:exllama", "vllm==0.20.2:reconstruct", "vllm==0.33.0:gptq"]
    report = run(
        asked(shifted_model, ",".join(names), (FIRST, SECOND), device="cpu", experiments="off", workarounds="off"),
        tmp_path / "run",
    )
    fused, reconstructed = result(report, names[0]), result(report, names[1])
    assert fused.first_bad is not None
    assert (fused.status, fused.first_bad.layer, fused.kernel) == ("overflow", OVERFLOWS, {"*": "exllama-fast"})
    assert (reconstructed.status, reconstructed.kernel) == ("agree", {"*": "exllama-reconstruct"})
    assert result(report, names[2]).status == "overflow"
    assert [f.cause for f in fused.findings][:1] == ["accumulator-overflow"]
    assert {(name, builds.name) for name, builds, _ in compiled} == {(name, name.partition(":")[0]) for name in names}
    assert {builds.parent.parent for _, builds, _ in compiled} == {user_store().root}
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert written["verdict"]["backend"] == "vllm==0.20.2:exllama"


def test_experiments_are_made_on_it(shifted_model: Path, tmp_path: Path, compiled: list[tuple[str, Path, str]]) -> None:
    """It is a live kernel, although the engine is the one whose kernels are simulated."""
    report = run(asked(shifted_model, "vllm==0.20.2:gptq", device="cpu", workarounds="off"), tmp_path / "run")
    failing = result(report, "vllm==0.20.2:gptq")
    assert {e.name for e in failing.experiments} >= {"row-sweep", "scaled-input"}
    assert live_subjects.concerned("auto", "transformers", "vllm==0.20.2:gptq")


def test_one_that_does_not_load_is_a_skipped_backend(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[str, Path, str]]
) -> None:
    """With the reason; the others have their verdict."""

    def release_kernel(name: str, builds: Path, device: str) -> Kernel:
        raise BackendError(f"{name} is not compiled for torch 9, CUDA 9, GPU 9.0", "gptq-diff kernels build")

    monkeypatch.setattr(hf, "release_kernel", release_kernel)
    report = run(asked(small_model, "hf-fp16,vllm==0.20.2:gptq", device="cpu"), tmp_path / "run")
    assert [(s.backend, "not compiled" in s.reason) for s in report.skipped_backends] == [("vllm==0.20.2:gptq", True)]
    assert result(report, "hf-fp16").status == "agree"


def test_one_that_cannot_run_here_is_refused_before_anything_runs(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, with the reason that `backends` would give."""
    from gptq_diff import hosts

    monkeypatch.setattr(hosts, "_GPU_SIGNS", ("/no/such/device",))
    with pytest.raises(UsageError, match=r"vllm==0\.20\.2:gptq cannot run here: needs an NVIDIA GPU"):
        asked(small_model, "vllm==0.20.2:gptq")
