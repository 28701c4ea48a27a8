"""One quantised linear as it lies in the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    import torch

    from gptq_diff.records import LayerSpec


@dataclass(frozen=True)
class PackedLinear:
    """The packed tensors of one linear, memory-mapped when they come from a checkpoint.

    spec: the layer's record; K, N, G below are its in_features, out_features and groups.
    qweight: int32 [K * bits / 32, N], packed along K (gptq_diff.checkpoint.packing).
    qzeros: int32 [G, N * bits / 32], packed along N, as stored (v1: zero - 1).
    scales: float16 or bfloat16 [G, N].
    g_idx: int32 [K], the group of every row, each in 0 to G - 1; None when row k is in group k // group_size.
    bias: [N] in the checkpoint's dtype, or None when none is stored.
    """

    spec: LayerSpec
    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensors, without the bias."""
        tensors = (self.qweight, self.qzeros, self.scales, self.g_idx)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def to(self, device: torch.device | str) -> PackedLinear:
        """The same linear with its tensors on another device."""
        return self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedLinear:
        """The same linear with every tensor as `move` gives it."""
        return replace(
            self,
            qweight=move(self.qweight),
            qzeros=move(self.qzeros),
            scales=move(self.scales),
            g_idx=None if self.g_idx is None else move(self.g_idx),
            bias=None if self.bias is None else move(self.bias),
        )
