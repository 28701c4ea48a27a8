"""Modules whose weights stay in the checkpoint's memory map: nothing as large as a model is ever copied."""

from __future__ import annotations

import torch
from torch import nn

CHUNK_ROWS = 8192
"""Rows of a mapped weight that are widened at a time: 168 MB of float32 at hidden size 5120."""


class MappedEmbedding(nn.Module):
    """Looks rows up in a mapped [V, H] table and converts only those."""

    def __init__(self, weight_VH: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._table = weight_VH  # not a parameter: moving the module must not copy it
        self._dtype = dtype

    @property
    def weight(self) -> torch.Tensor:
        """The mapped table, as stored."""
        return self._table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[..., H] in the skeleton's dtype."""
        return torch.nn.functional.embedding(ids.cpu(), self._table).to(device=ids.device, dtype=self._dtype)


class Scratch:
    """Memory of the CPU that mapped weights are widened into, one after the other.

    Fresh memory for each would lie between the captured tensors that stay, and the holes it leaves add up: SmolLM2's
    worker came to 1.8 GB so, and comes to 0.34 GB with this.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def widened(self, chunk: torch.Tensor, device: torch.device) -> torch.Tensor:
        """float32 values of the chunk on the device; on the CPU they hold until the next call."""
        if device.type != "cpu":
            return chunk.to(device).float()  # moved first: in one call the CPU would widen, and twice the bytes travel
        if self._memory.numel() < chunk.numel():
            with torch.inference_mode(mode=False):  # a tensor that may be written to in any mode
                self._memory = torch.empty(chunk.numel())
        return self._memory[: chunk.numel()].view(chunk.shape).copy_(chunk)


class MappedLinear(nn.Module):
    """An unquantised linear on a [N, K] weight, widened to float32 chunk by chunk.

    The weight is mapped, or on the device already (engines.shelf). Products are accumulated in float32 and rounded once
    to the input's dtype.
    """

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, scratch: Scratch | None = None) -> None:
        super().__init__()
        self._table = weight_NK
        self._bias = bias_N
        self._scratch = scratch or Scratch()

    @property
    def weight(self) -> torch.Tensor:
        """The mapped table, as stored."""
        return self._table

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias as stored, if there is one."""
        return self._bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., N] in the dtype of x."""
        y = self.product(x)
        if self._bias is not None:
            y = y + self._bias.to(device=x.device, dtype=torch.float32)
        return y.to(x.dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., N]: without the bias."""
        wide = x.float()
        chunks = (self._table[i : i + CHUNK_ROWS] for i in range(0, self._table.shape[0], CHUNK_ROWS))
        parts = [torch.nn.functional.linear(wide, self._scratch.widened(chunk, x.device)) for chunk in chunks]
        return torch.cat(parts, dim=-1)
