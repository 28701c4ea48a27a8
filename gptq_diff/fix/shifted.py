"""A checkpoint's tensors with powers of two moved between them; the files are left alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.fix.joints import Joint, Tied
from gptq_diff.models.gain_shift import exact_product


class Shifted:
    """What has changed of a checkpoint so far.

    changed: tensor name -> the tensor in the dtype and shape that it is stored in.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.changed: dict[str, torch.Tensor] = {}

    def packed(self, name: str) -> PackedLinear:
        """One linear as it is now."""
        linear = self._checkpoint.packed(name)
        bias = self.changed.get(f"{name}.bias", linear.bias)
        return replace(linear, scales=self.changed.get(f"{name}.scales", linear.scales), bias=bias)

    def tensor(self, name: str) -> torch.Tensor:
        """Any tensor as it is now."""
        return self.changed[name] if name in self.changed else self._checkpoint.tensor(name)

    def move(self, joint: Joint, tied: Tied, gain: float) -> str:
        """Multiply these channels of the activation by `gain`, their consumers' scales by 1 / gain.

        gain: a power of two. Nothing is changed, and the reason returned, where any factor would be rounded, overflow
        or become subnormal; else "".
        """
        wanted: dict[str, torch.Tensor] = {}
        if joint.is_norm:
            reason = self._times(joint.producer, (tied.columns,), gain, wanted)
        else:
            reason = self._times(f"{joint.producer}.scales", (slice(None), tied.columns), gain, wanted)
            if not reason and self._checkpoint.packed(joint.producer).bias is not None:
                reason = self._times(f"{joint.producer}.bias", (tied.columns,), gain, wanted)
        for consumer, groups in zip(joint.consumers, tied.groups):
            reason = reason or self._times(f"{consumer}.scales", (list(groups),), 1 / gain, wanted)
        if not reason:
            self.changed.update(wanted)
        return reason

    def _times(
        self, name: str, where: tuple[slice | torch.Tensor | list[int], ...], factor: float,
        wanted: dict[str, torch.Tensor],
    ) -> str:  # fmt: skip
        values = self.tensor(name)
        product, inexact = exact_product(values[where], factor)
        if inexact:
            return f"{inexact} values of {name} would overflow, lose bits or become subnormal times {factor:g}"
        wanted[name] = values.clone()
        wanted[name][where] = product
        return ""
