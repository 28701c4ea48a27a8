"""Calling `vllm._custom_ops.gptq_gemm` by what its parameters mean, whatever the release calls them with.

Three signatures are known: (a, qweight, qzeros, scales, g_idx, use_exllama, bit) up to vLLM 0.11, with `use_v2_format`
before `bit` from 0.12 on, and since 0.32 without g_idx. `gptq_shuffle` lost its permutation together with g_idx.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

import torch

from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

Gemm = Callable[..., torch.Tensor]


def vllm_ops() -> ModuleType:
    """The module `vllm._custom_ops`; BackendError where vLLM, or this op of it, is not there."""
    try:
        from vllm import _custom_ops
    except ImportError as e:
        raise BackendError(f"vLLM's own operations cannot be loaded: {e}", "this needs an interpreter with vLLM") from e
    if not hasattr(_custom_ops, "gptq_gemm"):
        raise BackendError("this vLLM has no gptq_gemm", "take a release that has it")
    return _custom_ops  # type: ignore[no-any-return]


@dataclass(frozen=True)
class GemmWeight:
    """A packed weight as the fast path and the reconstruct path want it: shuffled.

    qweight: int32 [K * bits / 32, N], after gptq_shuffle. qzeros, scales: as stored, on the same device.
    order_K: int32 [K], the rows sorted by group, or empty without desc_act.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    order_K: torch.Tensor
    bits: int
    v2: bool


def shuffled(ops: ModuleType, linear: PackedLinear, device: str) -> GemmWeight:
    """A checkpoint's linear brought to the device and shuffled there, as vLLM does after loading."""
    spec = linear.spec
    order_K = torch.empty(0, dtype=torch.int32, device=device)
    if linear.g_idx is not None:
        order_K = torch.argsort(linear.g_idx.to(device)).to(torch.int32)
    qweight = linear.qweight.to(device).contiguous().clone()
    shuffle(ops, qweight, order_K, spec.bits)
    scales = linear.scales.to(device=device, dtype=torch.float16).contiguous()
    return GemmWeight(
        qweight, linear.qzeros.to(device).contiguous(), scales, order_K, spec.bits, spec.format == "gptq_v2"
    )


def shuffle(ops: ModuleType, qweight: torch.Tensor, order_K: torch.Tensor, bits: int) -> None:
    """`gptq_shuffle`, in place; BackendError for desc_act where this release cannot permute."""
    if "q_perm" in inspect.signature(ops.gptq_shuffle).parameters:
        ops.gptq_shuffle(qweight, order_K, bits)
        return
    if order_K.numel():
        raise BackendError("this vLLM's gptq_gemm takes no g_idx, so it cannot run desc_act", "take an older release")
    ops.gptq_shuffle(qweight, bits)


def multiply(gemm: Gemm, x_MK: torch.Tensor, weight: GemmWeight) -> torch.Tensor:
    """One call of gptq_gemm with use_exllama: [M, N] float16."""
    values: dict[str, Any] = {
        "a": x_MK,
        "b_q_weight": weight.qweight,
        "b_gptq_qzeros": weight.qzeros,
        "b_gptq_scales": weight.scales,
        "b_g_idx": weight.order_K,
        "use_exllama": True,
        "use_v2_format": weight.v2,
        "bit": weight.bits,
    }
    names = inspect.signature(gemm).parameters
    unknown = [name for name in names if name not in values]
    if unknown:
        raise BackendError(f"this vLLM's gptq_gemm has an unknown parameter {unknown[0]!r}", "its route is not known")
    if weight.v2 and "use_v2_format" not in names:
        raise BackendError("this vLLM's gptq_gemm reads checkpoints of format gptq_v2 wrongly", "take 0.12 or newer")
    return gemm(**{name: values[name] for name in names})
