"""A model of Marlin with one scale a column: the unscaled sum narrowed to float16, then scaled in float16."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import unscaled_codes
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.records import LayerSpec, Support


class NarrowedSum(Kernel):
    """Says where Marlin with group_size -1 overflows; its last bits are not Marlin's (sums in another order).

    What the model is taken from: docs/gpu.md, "Marlin's and hgemm's own overflows".
    """

    name = "narrowed-sum"
    on_host = True

    def supports(self, spec: LayerSpec) -> Support:
        """One scale a column."""
        return Support(ok=spec.groups == 1, reason="" if spec.groups == 1 else "it has more than one scale a column")

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N]; float32 sums, as torch orders them."""
        sums_MN = x_MK.to(torch.float16).float() @ unscaled_codes(linear).float()
        return Product(sums_MN.to(torch.float16) * linear.scales.to(torch.float16)[0], "marlin")
