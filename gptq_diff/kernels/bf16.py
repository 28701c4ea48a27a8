"""What Hugging Face users run after dequantising to bfloat16: float32's range with 8 significant bits."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.precision import full_precision
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET, WeightStore
from gptq_diff.records import LayerSpec, Support


class Bf16Kernel(Kernel):
    """y = x W in bfloat16 by torch, which is held to float32 sums; error model "bf16"."""

    name = "bf16"

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._weights: WeightStore[torch.Tensor] = WeightStore(cache_bytes)

    def supports(self, spec: LayerSpec) -> Support:  # noqa: ARG002  every layer that can be read can be multiplied
        """Always: a layer that the checkpoint reader accepts can be dequantised."""
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """bfloat16 [M, N] on the device of x; the weight is held as [N, K], the layout `linear` is fast for."""
        device = x_MK.device
        w_NK = self._weights.get(
            f"{linear.spec.name} on {device}",
            lambda: dequantise(linear.to(device), torch.float32).t().to(torch.bfloat16).contiguous(),
        )
        with full_precision():
            return Product(torch.nn.functional.linear(x_MK.to(torch.bfloat16), w_NK), "bf16")
