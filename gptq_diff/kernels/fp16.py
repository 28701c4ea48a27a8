"""What Hugging Face users run after dequantising: weights rounded to float16, `torch` matmul in float16."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.precision import full_precision
from gptq_diff.kernels.tiled import TiledWeight, can_tile, product
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET, WeightStore
from gptq_diff.records import LayerSpec, Support


class Fp16Kernel(Kernel):
    """y = x W in float16 by torch, which is held to float32 sums; error model "fp16"."""

    name = "fp16"
    takes_half = True

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._weights: WeightStore[torch.Tensor] = WeightStore(cache_bytes)

    def supports(self, spec: LayerSpec) -> Support:  # noqa: ARG002  every layer that can be read can be multiplied
        """Always: a layer that the checkpoint reader accepts can be dequantised."""
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the device of x; the weight is held as [N, K], the layout `linear` is fast for."""
        device = x_MK.device
        if device.type == "cpu" and can_tile(linear):
            y_MN = product(x_MK.to(torch.float16), TiledWeight.of(linear), half_weight=True)
            return Product(y_MN.to(torch.float16), "fp16")
        w_NK = self._weights.get(
            f"{linear.spec.name} on {device}",
            lambda: dequantise(linear.to(device), torch.float32).t().to(torch.float16).contiguous(),
        )
        with full_precision():
            return Product(torch.nn.functional.linear(x_MK.to(torch.float16), w_NK), "fp16")
