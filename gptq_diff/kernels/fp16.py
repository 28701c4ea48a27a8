"""What Hugging Face users run after dequantising: weights rounded to float16, `torch` matmul in float16."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET, WeightStore
from gptq_diff.records import LayerSpec, Support


class Fp16Kernel(Kernel):
    """y = x W in float16 by torch, which accumulates in float32 on CPUs; error model "fp16"."""

    name = "fp16"

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._weights: WeightStore[torch.Tensor] = WeightStore(cache_bytes)

    def supports(self, spec: LayerSpec) -> Support:  # noqa: ARG002  every layer that can be read can be multiplied
        """Always: a layer that the checkpoint reader accepts can be dequantised."""
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N]; the weight is held as [N, K], the layout torch.nn.functional.linear is fast for."""
        w_NK = self._weights.get(
            linear.spec.name, lambda: dequantise(linear, torch.float32).t().to(torch.float16).contiguous()
        )
        return Product(torch.nn.functional.linear(x_MK.to(torch.float16), w_NK), "fp16")
