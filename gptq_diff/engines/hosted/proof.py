"""Proof that a library's modules hold the checkpoint's packed tensors, bit for bit.

Kernels shuffle the weights after loading, so the comparison is made in between: while `proving` is in force, the
library's own step that prepares its kernels first shows the model as it was read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.engines.hosted.modules import HostedLinear, hosted_linears
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint

_BITS = {2: torch.int16, 4: torch.int32}
"""By bytes an element: the integers whose equality is equality of bits, NaN included."""


@dataclass
class Proof:
    """What was seen between reading and shuffling.

    proved: linears whose tensors are the checkpoint's. biases: by linear, as read; kernels may permute them later.
    """

    proved: set[str] = field(default_factory=set)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)

    def check(self, linears: list[HostedLinear], library: str) -> None:
        """BackendError when a linear was never shown to the proof."""
        for linear in linears:
            if linear.spec.name not in self.proved:
                raise BackendError(
                    f"it could not be proved that {library}'s {linear.spec.name} holds the checkpoint's weight",
                    "this release prepares its kernels in a way that is not understood",
                )


@contextlib.contextmanager
def proving(holder: Any, name: str, checkpoint: Checkpoint, library: str) -> Iterator[Proof]:
    """While `holder.name`, the step that prepares the kernels of the model it is given, is called inside: prove first.

    BackendError where a tensor differs.
    """
    proof = Proof()
    original = getattr(holder, name, None)
    if original is None:
        yield proof  # nothing is proved, and `check` will say so
        return

    def first_prove(*args: Any, **kwargs: Any) -> Any:
        for model in (value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)):
            for linear in hosted_linears(model, checkpoint.layers, library):
                prove(linear, checkpoint.packed(linear.spec.name), proof, library)
        return original(*args, **kwargs)

    setattr(holder, name, first_prove)
    try:
        yield proof
    finally:
        setattr(holder, name, original)


def prove(linear: HostedLinear, stored: PackedLinear, proof: Proof, library: str) -> None:
    """Compare qweight, qzeros, scales and the groups of the rows, and keep the bias as read."""
    for what in ("qweight", "qzeros", "scales", "g_idx"):
        own = group_of_row(stored).to(torch.int32) if what == "g_idx" else getattr(stored, what)
        differing = differs(getattr(linear.module, what, None), own)
        if differing:
            raise BackendError(
                f"{library}'s {linear.spec.name} does not hold the checkpoint's {what}: it {differing}",
                "how this release reads such a checkpoint is not understood",
            )
    bias = getattr(linear.module, "bias", None)
    if bias is not None:
        proof.biases[linear.spec.name] = bias.detach().clone()
    proof.proved.add(linear.spec.name)


def differs(held: torch.Tensor | None, own: torch.Tensor) -> str:
    """How a module's tensor departs from the checkpoint's; empty where it does not."""
    if held is None:
        return "is not there"
    held = held.detach()
    own = own.to(device=held.device, dtype=held.dtype)
    if held.shape != own.shape:
        return f"has the shape {list(held.shape)}, not {list(own.shape)}"
    bits = _BITS[own.element_size()]
    count = int((held.contiguous().view(bits) != own.contiguous().view(bits)).sum())
    return f"differs in {count} of {own.numel()} values" if count else ""
