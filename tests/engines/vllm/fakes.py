"""Stand-ins for vLLM's modules: quantised linears whose kernel is a plain product, fused as vLLM fuses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear


class CPUWNA16LinearKernel:
    """Named as vLLM's, so that the engine knows its path."""

    config = "shape"


class ExllamaLinearKernel(CPUWNA16LinearKernel):
    pass


class MarlinLinearKernel(CPUWNA16LinearKernel):
    pass


class MysteryLinearKernel(CPUWNA16LinearKernel):
    pass


class AutoGPTQLinearMethod:
    """y = x W + bias in float32, W taken from the module."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = (x.float() @ layer.w_KN).to(x.dtype)
        return y if bias is None else y + bias


class GPTQLinearMethod(AutoGPTQLinearMethod):
    """The old method, without a kernel object."""

    def __init__(self) -> None:
        super().__init__(None)
        del self.kernel


class FakeLinear(nn.Module):
    """Packed linears side by side, as the model loader leaves them before the kernel shuffles."""

    def __init__(self, parts: list[PackedLinear], method: Any) -> None:
        super().__init__()
        self.qweight = torch.cat([p.qweight for p in parts], dim=1)
        self.qzeros = torch.cat([p.qzeros for p in parts], dim=1)
        self.scales = torch.cat([p.scales for p in parts], dim=1).to(torch.float16)
        self.w_KN = torch.cat([dequantise(p) for p in parts], dim=1)
        biases = [p.bias for p in parts if p.bias is not None]
        self.bias = torch.cat(biases).to(torch.float16) if biases else None
        self.output_partition_sizes = [p.spec.out_features for p in parts]
        self.quant_method = method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.quant_method.apply(self, x, self.bias)
        return y
