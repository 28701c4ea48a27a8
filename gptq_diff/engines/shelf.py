"""Mapped tensors on the device that a model runs on: there for good while there is room, else brought for each use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


class Shelf:
    """Keeps the first tensors that fit into `budget` bytes of the device and drops none (see kernels.weight_store).

    On the CPU everything stays where it is mapped.
    """

    def __init__(self, device: torch.device, budget: int = 0) -> None:
        self.device = device
        self.budget = budget
        self.used = 0
        self._packed: dict[str, PackedLinear] = {}

    def table(self, mapped: torch.Tensor) -> torch.Tensor:
        """The tensor on the device if it can stay there, else as it is mapped; ask once a tensor."""
        return mapped.to(self.device) if self._takes(mapped.nbytes) else mapped

    def linear(self, mapped: PackedLinear) -> PackedLinear:
        """The packed tensors on the device."""
        if self.device.type == "cpu":
            return mapped
        kept = self._packed.get(mapped.spec.name)
        if kept is None:
            kept = mapped.to(self.device)
            if self._takes(kept.nbytes):
                self._packed[mapped.spec.name] = kept
        return kept

    def _takes(self, nbytes: int) -> bool:
        """Whether that much more can stay; if so it is counted."""
        fits = self.device.type != "cpu" and self.used + nbytes <= self.budget
        self.used += nbytes if fits else 0
        return fits


def on_the_cpu() -> Shelf:
    """A shelf that nothing is put on."""
    return Shelf(torch.device("cpu"))
