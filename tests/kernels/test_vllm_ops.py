"""Single linears on "live" ops, on a stand-in for vLLM's module of them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu import sim_vs_kernel
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, stored_zeros, unpack_rows
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.fastpath import simulate_fast_path
from gptq_diff.kernels.vllm_gemm.paths import FAST, PathGuard
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors


def ops_with(spoil: float = 0.0) -> ModuleType:
    """vLLM 0.20's two ops on a CPU: up to 50 rows the simulated fast path (plus `spoil`), else fp16 weights."""

    def gptq_shuffle(q_weight, q_perm, bit):  # type: ignore[no-untyped-def]
        if q_perm.numel():
            codes = unpack_rows(q_weight, bit, q_weight.shape[0] * 32 // bit)
            q_weight.copy_(pack_rows(codes[q_perm.long()].to(torch.int16), bit))

    def gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, use_v2_format, bit):  # type: ignore[no-untyped-def]
        k, n = a.shape[1], b_q_weight.shape[1]
        group = k // b_gptq_scales.shape[0]
        zeros = stored_zeros(b_gptq_qzeros, bit, n) + (0 if use_v2_format else 1)
        codes = unpack_rows(b_q_weight, bit, k).to(torch.int16) - zeros.repeat_interleave(group, dim=0)
        x = a[:, b_g_idx.long()] if b_g_idx.numel() else a
        if len(a) > 50:
            weight = (codes.float() * b_gptq_scales.float().repeat_interleave(group, dim=0)).to(torch.float16)
            return (x.float() @ weight.float()).to(torch.float16)
        y = simulate_fast_path(x.contiguous().numpy(), codes.numpy(), b_gptq_scales.numpy(), group, bit)
        return torch.from_numpy(y) + spoil

    ops: Any = ModuleType("_custom_ops")
    ops.gptq_gemm, ops.gptq_shuffle = gptq_gemm, gptq_shuffle
    return ops  # type: ignore[no-any-return]


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_comparison_finds_no_difference_where_there_is_none(bits: int, desc_act: bool) -> None:
    """Its own bookkeeping of rows, groups, zeros and blocks is right, and its inputs are what they are said to be."""
    ops = ops_with()
    guard = PathGuard(ops, "cpu")
    guard.force = FAST
    case = sim_vs_kernel.make_case(ops, bits, 96, 64, "cpu", 5, desc_act=desc_act, v2=False)
    counts = sim_vs_kernel.Counts(bits)
    sim_vs_kernel.compare(case, guard, sim_vs_kernel.make_x(case, 50, 1), counts)
    assert (counts.values, counts.differing, counts.examples) == (3 * 50 * 96, 0, [])
    assert counts.large >= counts.values // 10
    assert counts.subnormal >= counts.values // 10
    assert 0 < counts.nonfinite < counts.values // 4


def test_the_comparison_counts_what_differs_and_says_where() -> None:
    ops = ops_with(spoil=1.0)
    guard = PathGuard(ops, "cpu")
    guard.force = FAST
    case = sim_vs_kernel.make_case(ops, 4, 96, 64, "cpu", 5, desc_act=False, v2=True)
    counts = sim_vs_kernel.Counts(4)
    sim_vs_kernel.compare(case, guard, sim_vs_kernel.make_x(case, 8, 1), counts)
    assert counts.differing > counts.values // 2
    assert len(counts.examples) == sim_vs_kernel.EXAMPLES
    assert counts.examples[0].startswith("group 64 block 0 [0, 0]: simulated ")


@pytest.mark.parametrize(("name", "path"), [("vllm-exllama-fast", "exllama-fast"), ("vllm-gptq", None)])
def test_a_linear_of_a_checkpoint_is_replayed(name: str, path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's own packed tensors, desc_act included, on any number of rows."""
    monkeypatch.setattr("gptq_diff.kernels.vllm_ops.vllm_ops", ops_with)
    monkeypatch.setattr("gptq_diff.kernels.vllm_ops.VllmGemm.__init__.__defaults__", ("cpu",))
    spec = LayerSpec("q", 128, 64, 4, 32, sym=False, desc_act=True, format="gptq", has_bias=False)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    g_idx = (torch.arange(128) // 32)[order].to(torch.int32)
    stored = linear_tensors("q", 128, 64, seed=4, sym=False, g_idx=g_idx.tolist())
    packed = PackedLinear(spec, stored["q.qweight"], stored["q.qzeros"], stored["q.scales"], g_idx, None)
    kernel = make_kernel(name)
    assert kernel.supports(spec).ok
    exact_KN = dequantise(packed, torch.float64)
    for rows in (3, 50, 60):
        x = torch.randn((rows, 128), generator=torch.Generator().manual_seed(rows)).to(torch.float16)
        product = kernel.multiply(x, packed)
        assert product.path == (path or ("exllama-fast" if rows <= 50 else "exllama-reconstruct"))
        error = product.y_MN.double() - x.double() @ exact_KN
        assert float(error.norm() / (x.double() @ exact_KN).norm()) < 2e-3
