"""The reference kernel: the exactly dequantised weight, multiplied in float32."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.weight_store import WeightStore
from gptq_diff.records import LayerSpec, Support

BUDGET = 768 * 2**20
"""Bytes of float32 weights to keep; SmolLM2-135M's 106 million are 425 MB."""


class ExactKernel(Kernel):
    """y = x W with W exact in float32 and float32 accumulation; error model "exact"."""

    name = "exact"

    def __init__(self, cache_bytes: int = BUDGET) -> None:
        self._weights: WeightStore[torch.Tensor] = WeightStore(cache_bytes)
        self._scratch = torch.empty(0)

    def supports(self, spec: LayerSpec) -> Support:  # noqa: ARG002  every layer that can be read can be multiplied
        """Always: a layer that the checkpoint reader accepts can be dequantised."""
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float32 [M, N]; x is widened first, exactly."""
        return Product(x_MK.to(torch.float32) @ self._weight(linear), "exact")

    def _weight(self, linear: PackedLinear) -> torch.Tensor:
        """Kept, or unpacked into memory that the next layer uses again: fresh pages cost more than unpacking."""
        name, size = linear.spec.name, linear.spec.in_features * linear.spec.out_features
        if self._weights.find(name) is not None or self._weights.has_room(4 * size):
            return self._weights.get(name, lambda: dequantise(linear, torch.float32))
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.float32)
        return dequantise(linear, torch.float32, out=self._scratch)
