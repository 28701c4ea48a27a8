"""Machete's replay on a stand-in for vLLM's ops that multiplies what it was given to pack."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import unpack_rows
from gptq_diff.errors import BackendError
from gptq_diff.kernels.vllm_machete import VllmMachete
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors


def machete_mm(a: torch.Tensor, b_q: torch.Tensor, b_type: int, b_group_scales: torch.Tensor, b_group_zeros: None,
               b_group_size: int) -> torch.Tensor:  # fmt: skip
    """Codes minus the middle of their range, times the scale of their group, as Machete's types say."""
    k = a.shape[1]
    codes_KN = unpack_rows(b_q.contiguous(), b_type, k).float() - 2 ** (b_type - 1)
    rows = k if b_group_size == -1 else b_group_size
    w_KN = codes_KN * b_group_scales.float().repeat_interleave(rows, dim=0)
    return (a.float() @ w_KN).to(torch.float16)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    ops = SimpleNamespace(machete_mm=machete_mm, machete_prepack_B=lambda w, **_: w)
    monkeypatch.setattr("gptq_diff.kernels.vllm_machete.vllm_ops", lambda: ops)
    utils: Any = ModuleType("machete_utils")
    utils.query_machete_supported_group_sizes = lambda dtype: [-1, 32, 128]
    utils.check_machete_supports_shape = lambda k, n: (n % 32 == 0, None if n % 32 == 0 else "N must be 32s")
    holder: Any = ModuleType("vllm.model_executor.layers.quantization.utils")
    holder.machete_utils = utils
    scalar: Any = ModuleType("vllm.scalar_type")
    scalar.scalar_types = SimpleNamespace(uint4b8=4, uint8b128=8)
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.quantization"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, holder.__name__, holder)
    monkeypatch.setitem(sys.modules, scalar.__name__, scalar)
    return utils


def linear(bits: int, group_size: int, *, desc_act: bool, sym: bool = True) -> PackedLinear:
    groups = 64 // (64 if group_size == -1 else group_size)
    draw = torch.Generator().manual_seed(1)
    order = torch.randperm(64, generator=draw) % groups if desc_act else None
    t = linear_tensors(
        "q", 64, 32, bits, group_size, sym=sym, g_idx=order.tolist() if order is not None else None
    )  # fmt: skip
    spec = LayerSpec("q", 64, 32, bits, 64 if group_size == -1 else group_size, sym, desc_act, "gptq", has_bias=False)
    g_idx = t["q.g_idx"].to(torch.int32) if desc_act else None
    return PackedLinear(spec, t["q.qweight"], t["q.qzeros"], t["q.scales"], g_idx, None)


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_checkpoints_own_weight_is_multiplied(vllm: Any, bits: int, group_size: int, desc_act: bool) -> None:
    """Groups, one group a column, and desc_act, whose rows are put in order of their groups together with x."""
    packed = linear(bits, group_size, desc_act=desc_act)
    kernel = VllmMachete("cpu")
    assert kernel.supports(packed.spec).ok
    x_MK = torch.randn((5, 64), generator=torch.Generator().manual_seed(2)).to(torch.float16)
    product = kernel.multiply(x_MK, packed)
    exact = x_MK.double() @ dequantise(packed).double()
    assert product.path == "machete"
    assert float((product.y_MN.double() - exact).norm() / exact.norm()) < 1e-3


def test_what_it_does_not_take_is_refused_with_the_reason(vllm: Any) -> None:
    """By its own checks, and by what its types leave out."""
    kernel = VllmMachete("cpu")
    spec = linear(4, 32, desc_act=False).spec
    assert "not 4 bit, sym False" in kernel.supports(LayerSpec(**{**vars(spec), "sym": False})).reason
    assert kernel.supports(LayerSpec(**{**vars(spec), "group_size": 16})).reason == "Machete refuses groups of 16"
    assert (
        kernel.supports(LayerSpec(**{**vars(spec), "out_features": 33})).reason == "Machete refuses it: N must be 32s"
    )
    with pytest.raises(BackendError, match="zero points of its own"):
        kernel.multiply(torch.zeros(1, 64), linear(4, 32, desc_act=False, sym=False))


def test_a_release_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails is one sentence."""
    monkeypatch.setattr("gptq_diff.kernels.vllm_machete.vllm_ops", SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BackendError, match="keeps Machete in an unknown place"):
        VllmMachete("cpu")
