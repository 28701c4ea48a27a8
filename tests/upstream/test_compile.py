"""The compiling process: what it refuses, what it keeps, what it leaves. torch's own compiling is a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from gptq_diff.built_file import read_built
from gptq_diff.errors import BackendError
from gptq_diff.upstream import compile as compiling
from gptq_diff.upstream.spec import Compiled, CompileSpec

SPEC = CompileSpec(
    "vllm", "0.5.1", "kernel", ("/x/q_gemm.cu",), ("/x",), ("-DGPTQ_G_IDX",), ("-O2",), ("aten", "add", "mul"),
    "9.0", "digest", "recipe", "",
)  # fmt: skip


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A torch for CUDA, an nvcc, and a compiler that writes a file; the variables that the process starts from."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    (home / "bin" / "nvcc").chmod(0o755)

    def load(**said: Any) -> None:
        Path(said["build_directory"], f"{said['name']}.so").write_text(json.dumps(said))

    monkeypatch.setattr(cpp_extension, "load", load)
    return {"CUDA_HOME": str(home), "PATH": ""}


def spec_below(tmp_path: Path, **changes: Any) -> CompileSpec:
    """The spec, its kernels to go below that folder."""
    return replace(SPEC, target=str(tmp_path / "builds"), **changes)


def left(tmp_path: Path) -> list[str]:
    """What is in the folder of builds."""
    folder = tmp_path / "builds"
    return sorted(place.name for place in folder.iterdir()) if folder.exists() else []


def test_a_kernel_is_compiled_loaded_and_recorded(cuda: dict[str, str], tmp_path: Path) -> None:
    """In a folder named for what it was compiled for; a second time nothing is compiled."""
    spec = spec_below(tmp_path)
    made = compiling.compile_release(spec, cuda)
    folder = Path(str(made.folder))
    assert (folder.name, made.cached) == (f"torch{torch.__version__}-cuda13.0-sm90-recipe", False)
    built = read_built(folder)
    assert (built.torch, built.arch, built.nvcc, built.sources) == (str(torch.__version__), "9.0", "13.0", "digest")
    assert built.torch.startswith(built.installed_torch.partition("+")[0])
    said = json.loads((folder / built.library).read_text())
    assert said["sources"] == ["/x/q_gemm.cu"]
    assert said["extra_cuda_cflags"] == ["-O2", "-DGPTQ_G_IDX"]
    assert said["extra_cflags"] == ["-DGPTQ_G_IDX"]
    assert cuda["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert left(tmp_path) == [folder.name]
    assert compiling.compile_release(spec, {}) == Compiled(str(folder), None, None, cached=True)


def test_another_gpu_or_recipe_is_another_kernel(cuda: dict[str, str], tmp_path: Path) -> None:
    """None overwrites the other."""
    for changes in ({}, {"arch": "8.0"}, {"recipe": "newer"}):
        compiling.compile_release(spec_below(tmp_path, **changes), cuda)
    assert len(left(tmp_path)) == 3


def test_what_does_not_compile_says_its_first_error_and_leaves_nothing(
    cuda: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it goes to the log."""
    said = "Error building extension 'kernel': [1/3]\n/a/q_gemm.cu(7): error: no such thing\n/a/q.cu(8): error: more\n"

    def load(**_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(cpp_extension, "load", load)
    with pytest.raises(BackendError, match=r"does not compile with torch .*: q_gemm\.cu\(7\): error: no such thing$"):
        compiling.compile_release(spec_below(tmp_path), cuda)
    assert said in capsys.readouterr().out
    assert left(tmp_path) == []


def test_a_library_without_the_operation_is_not_kept(cuda: dict[str, str], tmp_path: Path) -> None:
    """It compiled, and registers something else."""
    with pytest.raises(BackendError, match="gptq_gemm"):
        compiling.compile_release(spec_below(tmp_path, ops=("aten", "gptq_gemm")), cuda)
    assert left(tmp_path) == []


def test_torch_for_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is looked for."""
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="built without CUDA") as caught:
        compiling.compile_release(spec_below(tmp_path), {})
    assert "--python" in str(caught.value.hint)


def test_without_a_gpu_the_architecture_has_to_be_named(cuda: dict[str, str], tmp_path: Path) -> None:
    """There is none to ask here."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match="no NVIDIA GPU here to compile for") as caught:
        compiling.compile_release(spec_below(tmp_path, arch=""), cuda)
    assert "--arch" in str(caught.value.hint)


def test_with_one_its_own_is_taken(cuda: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute capability, as torch tells it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    compiling.compile_release(spec_below(tmp_path, arch=""), cuda)
    assert left(tmp_path) == [f"torch{torch.__version__}-cuda13.0-sm86-recipe"]


def test_without_a_compiler_that_is_said(cuda: dict[str, str], tmp_path: Path) -> None:
    """CUDA_HOME is believed even when it is wrong: whoever set it wants to know."""
    with pytest.raises(BackendError, match="there is no nvcc here") as caught:
        compiling.compile_release(spec_below(tmp_path), {"CUDA_HOME": str(tmp_path / "none")})
    assert "13.0" in str(caught.value.hint)
    assert left(tmp_path) == []


def test_nvcc_is_found_on_path_through_links(tmp_path: Path) -> None:
    """/usr/local/bin/nvcc is often a link into the folder that has the headers."""
    home = tmp_path / "cuda-13"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "elsewhere/x"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("")
    (home / "bin/nvcc").chmod(0o755)
    (home / "elsewhere" / "nvcc").symlink_to(home / "bin/nvcc")
    assert compiling.cuda_home({"PATH": str(home / "elsewhere")}) == home
    assert compiling.cuda_home({"CUDA_PATH": str(home), "PATH": ""}) == home


def test_one_without_headers_is_better_than_none(tmp_path: Path) -> None:
    """A wrapper in a folder of its own, where pip has brought the headers: they are looked for there."""
    (tmp_path / "alone" / "bin").mkdir(parents=True)
    (tmp_path / "alone" / "bin" / "nvcc").write_text("")
    (tmp_path / "alone" / "bin" / "nvcc").chmod(0o755)
    found = compiling.cuda_home({"PATH": str(tmp_path / "alone" / "bin")})
    assert found in (tmp_path / "alone", Path("/usr/local/cuda"))


@pytest.mark.parametrize("script", ["#!/bin/sh\necho something\n", "#!/bin/sh\nexit 1\n", None])
def test_an_nvcc_that_does_not_say_its_version_is_unknown(script: str | None, tmp_path: Path) -> None:
    """It is only for the record."""
    nvcc = tmp_path / "nvcc"
    if script is not None:
        nvcc.write_text(script)
        nvcc.chmod(0o755)
    assert compiling.version_of(nvcc) == "unknown"


def test_what_a_killed_process_left_is_swept(cuda: dict[str, str], tmp_path: Path) -> None:
    """And not what one that still compiles is at work on."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = tmp_path / "builds" / f".part-{os.getpid()}-x"
    for name in (f".part-{dead.pid}-x", ".part-odd", mine.name):
        (tmp_path / "builds" / name / "work").mkdir(parents=True)
    made = compiling.compile_release(spec_below(tmp_path), cuda)
    assert left(tmp_path) == sorted([mine.name, Path(str(made.folder)).name])


def test_two_at_once_leave_one_kernel(cuda: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the place taken when it is done, and is content."""
    spec = spec_below(tmp_path)
    load = cpp_extension.load

    def slow(**said: Any) -> None:
        monkeypatch.setattr(cpp_extension, "load", load)
        compiling.compile_release(spec, cuda)
        load(**said)

    monkeypatch.setattr(cpp_extension, "load", slow)
    made = compiling.compile_release(spec, cuda)
    assert left(tmp_path) == [Path(str(made.folder)).name]
    read_built(Path(str(made.folder)))


def test_the_process_ends_with_a_result_for_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3, no traceback; a module that is missing is one of these."""
    spec_below(tmp_path).write(tmp_path / "spec.json")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert compiling.main([str(tmp_path / "spec.json"), str(tmp_path / "result.json")]) == 3
    said = Compiled.read(tmp_path / "result.json")
    assert said is not None and "built without CUDA" in str(said.failure)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert compiling.main([str(tmp_path / "spec.json"), str(tmp_path / "result.json")]) == 3
    said = Compiled.read(tmp_path / "result.json")
    assert said is not None and "cannot import torch" in str(said.failure)


def test_headers_of_pips_cuda_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with cuBLAS: nvcc's folder alone often has none."""
    for name in ("cu13/include/cublas_v2.h", "nccl/include/nccl.h"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / name).write_text("")
    monkeypatch.setattr(compiling, "sysconfig", SimpleNamespace(get_paths=lambda: {"purelib": str(tmp_path)}))
    assert compiling.cuda_headers() == [str(tmp_path / "nvidia" / "cu13" / "include")]
