"""The kernel `sim-reconstruct`: vLLM's reconstruct path, with a model of cuBLAS's hgemm, whatever M is."""

from __future__ import annotations

import numpy as np
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.fastpath import refusal
from gptq_diff.kernels.hgemm_model import HalfWeight, multiply_prepared, prepare_half
from gptq_diff.kernels.sim_exllama import as_vllm_loads, fast_path_support
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET, WeightStore
from gptq_diff.records import LayerSpec, Support

PATH = "exllama-reconstruct"

_GROUP_STEP = 32
"""Rows between two looks at the group boundary in every `reconstruct_exllama_*` kernel, 2 bit included."""


class SimReconstruct(Kernel):
    """The weight rounded to half, then the model of hgemm; error model "exllama-reconstruct".

    The weight is (code - zero) * scale with one rounding to half: `__hmul2` of two exact halves in
    https://github.com/vllm-project/vllm/blob/v0.20.2/csrc/quantization/gptq/q_gemm.cu (`reconstruct_exllama_*`).
    """

    name = "sim-reconstruct"
    takes_half = True
    on_host = True

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._weights: WeightStore[HalfWeight] = WeightStore(cache_bytes)

    def supports(self, spec: LayerSpec) -> Support:
        """What vLLM's kernel can reconstruct: as the fast path, and groups that are multiples of 32 for 2 bit too."""
        reason = fast_path_support(spec).reason
        reason = reason or refusal(spec.bits, spec.in_features, spec.group_size, _GROUP_STEP)
        return Support(ok=not reason, reason=reason)

    def arithmetic(self, rows: int, linear: PackedLinear) -> str:  # noqa: ARG002
        """Reconstruction, whatever the rows are."""
        return PATH

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the CPU; float32 x is rounded to float16 first, as the kernel takes no other."""
        weight = self._weights.get(linear.spec.name, lambda: half_weight(linear))
        halves = np.ascontiguousarray(x_MK.detach().to("cpu", torch.float16).numpy())
        return Product(torch.from_numpy(multiply_prepared(halves, weight)), PATH)


def half_weight(linear: PackedLinear) -> HalfWeight:
    """The reconstructed weight in strips; rows stay in x's order (the kernel writes them back there)."""
    return prepare_half(dequantise(as_vllm_loads(linear), torch.float16).cpu().numpy())
