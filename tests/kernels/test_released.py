"""A release's own kernel, on a stand-in library: which build is taken, and that it is called by its names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels import released
from gptq_diff.kernels.released import fitting, loaded_ops, named, release_kernel
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT
from gptq_diff.releases import Release
from gptq_diff.upstream.store import Store
from tests.checkpoint.build import linear_tensors
from tests.kernels.test_gptqmodel_ops import made
from tests.kernels.test_vllm_ops import ops_with
from tests.upstream.test_store import keep

VLLM, GPTQMODEL = Release("vllm", "0.20.2"), Release("gptqmodel", "7.7.0")
SCHEMA = (
    "(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor b_g_idx, bool use_exllama, "
    "bool use_v2_format, int bit) -> Tensor"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch for CUDA 13 sees a GPU of capability 9.0."""
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were loaded: any of them registers vLLM's two operations as 0.20.2 has them, on the CPU."""
    registered = torch.library.Library("gptq_diff_stand_in", "DEF")
    registered.define(f"gptq_gemm{SCHEMA}")
    registered.define("gptq_shuffle(Tensor(a!) q_weight, Tensor q_perm, int bit) -> ()")
    ops, loaded = ops_with(), list[str]()
    registered.impl("gptq_gemm", lambda *args: ops.gptq_gemm(*args), "CPU")
    registered.impl("gptq_shuffle", lambda *args: ops.gptq_shuffle(*args), "CPU")
    monkeypatch.setattr(released, "NAMESPACES", {"vllm": "gptq_diff_stand_in"})
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    yield loaded
    registered._destroy()


def linear() -> PackedLinear:
    """A small symmetric linear."""
    from gptq_diff.records import LayerSpec

    stored = linear_tensors("q", 128, 64, seed=4)
    spec = LayerSpec("q", 128, 64, 4, 32, sym=True, desc_act=False, format="gptq", has_bias=False)
    return PackedLinear(spec, stored["q.qweight"], stored["q.qzeros"], stored["q.scales"], None, None)


@pytest.mark.parametrize(
    ("mode", "rows", "path"),
    [
        ("exllama", 3, FAST), ("exllama", 60, FAST), ("reconstruct", 3, RECONSTRUCT), ("gptq", 50, FAST),
        ("gptq", 51, RECONSTRUCT),
    ],
)  # fmt: skip
def test_each_mode_runs_its_path(
    mode: str, rows: int, path: str, gpu: None, library: list[str], tmp_path: Path
) -> None:
    """Forced, or as the rows say; the kernel bears the name that it was asked for by, and gives W x."""
    store = Store(tmp_path)
    folder = keep(store, "0.20.2")
    name = f"{VLLM}:{mode}"
    kernel = release_kernel(name, store.builds(VLLM), "cpu")
    x_MK = torch.randn((rows, 128), generator=torch.Generator().manual_seed(rows)).to(torch.float16)
    product = kernel.multiply(x_MK, linear())
    assert (kernel.name, product.path) == (name, path)
    assert library == [str(folder / "kernel.so")]
    exact = x_MK.double() @ dequantise(linear(), torch.float64)
    assert float((product.y_MN.double() - exact).norm() / exact.norm()) < 3e-3


def test_gptqmodels_kernel_is_exllama_v2(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GPTQModel's reading of zero points, its path by rows."""
    store = Store(tmp_path)
    keep(store, "7.7.0", package="gptqmodel")
    ops = made("gptqmodel")._ops  # type: ignore[attr-defined]
    monkeypatch.setattr(released, "loaded_ops", lambda library, release: ops)
    kernel = release_kernel(f"{GPTQMODEL}:exllama_v2", store.builds(GPTQMODEL), "cpu")
    assert kernel.name == "gptqmodel==7.7.0:exllama_v2"
    product = kernel.multiply(torch.ones((2, 128), dtype=torch.float16), linear())
    assert product.path == FAST


def test_the_build_for_this_torch_and_gpu_is_taken(gpu: None, tmp_path: Path) -> None:
    """Others of the same release lie beside it."""
    store = Store(tmp_path)
    keep(store, "0.20.2", arch="8.0")
    keep(store, "0.20.2", torch="2.13.0+cu130")
    right = keep(store, "0.20.2")
    assert fitting(VLLM, store.builds(VLLM), "cuda:0") == right / "kernel.so"


def test_without_one_what_there_is_is_said(gpu: None, tmp_path: Path) -> None:
    """And the command that compiles it."""
    store = Store(tmp_path)
    with pytest.raises(BackendError, match=r"not compiled for torch 2\.11\.0\+cu130, CUDA 13\.0, GPU 9\.0$") as caught:
        fitting(VLLM, store.builds(VLLM), "cuda:0")
    assert caught.value.hint == "gptq-diff kernels build vllm==0.20.2"
    keep(store, "0.20.2", arch="8.0")
    with pytest.raises(BackendError, match=r"\(there is: torch 2\.11\.0\+cu130, CUDA 13\.0, GPU 8\.0\)$"):
        fitting(VLLM, store.builds(VLLM), "cuda:0")


def test_without_a_gpu_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any library is loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        release_kernel(f"{VLLM}:gptq", tmp_path, "cuda:0")


def test_a_library_that_does_not_load_is_a_sentence(tmp_path: Path) -> None:
    """A file that was damaged, or one for another torch."""
    (tmp_path / "kernel.so").write_bytes(b"not a library")
    with pytest.raises(BackendError, match=r"the kernel of vllm==0\.20\.2 does not load: ") as caught:
        loaded_ops(tmp_path / "kernel.so", VLLM)
    assert caught.value.hint == "gptq-diff kernels remove vllm==0.20.2"


def test_a_name_of_no_release_is_refused(tmp_path: Path) -> None:
    """Nobody hands it one; a typo in the code would."""
    with pytest.raises(BackendError, match="no kernel of a release"):
        release_kernel("exact", tmp_path)


def test_an_operation_shows_its_parameters() -> None:
    """By which the callers tell one release's signature from another's."""
    import inspect

    relu = named(torch.ops.aten.relu)
    assert list(inspect.signature(relu).parameters) == ["self"]
    assert relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
