"""The reference kernel: the exactly dequantised weight, multiplied in float32, on a GPU in float64."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.tiled import TiledWeight, can_tile, product
from gptq_diff.kernels.weight_store import WeightStore
from gptq_diff.records import LayerSpec, Support

BUDGET = 768 * 2**20
"""Bytes of float32 weights to keep; SmolLM2-135M's 106 million are 425 MB."""
STRIP = 1024
"""Rows of W that are widened to float64 at a time: 226 MB at N=27648."""


class ExactKernel(Kernel):
    """y = x W with W exact in float32; error model "exact".

    Sums are in float32 on the CPU. On any other device they are in float64 and rounded once: there it costs little, and
    TF32, which `torch` or a variable may switch on, does not reach it.
    """

    name = "exact"

    def __init__(self, cache_bytes: int = BUDGET) -> None:
        self._weights: WeightStore[torch.Tensor] = WeightStore(cache_bytes)
        self._scratch = torch.empty(0)

    def supports(self, spec: LayerSpec) -> Support:  # noqa: ARG002  every layer that can be read can be multiplied
        """Always: a layer that the checkpoint reader accepts can be dequantised."""
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float32 [M, N] on the device of x; x is widened first, exactly."""
        if x_MK.device.type == "cpu" and can_tile(linear):
            return Product(product(x_MK, TiledWeight.of(linear)), "exact")
        if x_MK.device.type == "cpu":
            return Product(x_MK.to(torch.float32) @ self._weight(linear), "exact")
        return Product(wide_product(x_MK, self._weight(linear.to(x_MK.device))), "exact")

    def _weight(self, linear: PackedLinear) -> torch.Tensor:
        """Kept, or unpacked into memory that the next layer uses again: fresh pages cost more than unpacking."""
        device = linear.qweight.device
        name, size = f"{linear.spec.name} on {device}", linear.spec.in_features * linear.spec.out_features
        if self._weights.find(name) is not None or self._weights.has_room(4 * size):
            return self._weights.get(name, lambda: dequantise(linear, torch.float32))
        if self._scratch.numel() < size or self._scratch.device != device:
            self._scratch = torch.empty(size, dtype=torch.float32, device=device)
        return dequantise(linear, torch.float32, out=self._scratch)


def wide_product(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """float32 [M, N]: x W with products and sums in float64, W (float32) widened a strip of rows at a time."""
    total_MN = torch.zeros((x_MK.shape[0], w_KN.shape[1]), dtype=torch.float64, device=x_MK.device)
    for k in range(0, w_KN.shape[0], STRIP):
        total_MN.addmm_(x_MK[:, k : k + STRIP].double(), w_KN[k : k + STRIP].double())
    return total_MN.float()
