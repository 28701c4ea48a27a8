"""Proof that a vLLM module holds what we take it for: its packed tensors against the checkpoint's, column by column.

Kernels shuffle the weights right after loading, so the comparison is made in between: while `proving` is in force,
vLLM's own step "process weights after loading" first shows the model as it was read.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptq_diff.engines.vllm.modules import FusedLinear, Part, fused_linears
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint

PLACES = (
    ("vllm.model_executor.model_loader.base_loader", "process_weights_after_loading"),
    ("vllm.model_executor.model_loader.loader", "_process_weights_after_loading"),
)
"""Where releases call that step from: 0.9 and newer, and before."""


@dataclass
class Proof:
    """What was seen between reading and shuffling.

    columns: linears whose columns were proved. biases: module -> its bias as read; kernels may permute it later.
    """

    columns: set[str] = field(default_factory=set)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def proving(checkpoint: Checkpoint) -> Iterator[Proof]:
    """Prove every quantised module of the model that is loaded inside; refused where a tensor differs."""
    proof = Proof()
    holder, name = _place()
    if holder is None:
        yield proof
        return
    original = getattr(holder, name)

    def first_prove(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for linear in fused_linears(model, checkpoint.layers):
            prove(linear, checkpoint, proof)
        return original(model, *args, **kwargs)

    setattr(holder, name, first_prove)
    try:
        yield proof
    finally:
        setattr(holder, name, original)


def _place() -> tuple[ModuleType | None, str]:
    for module_name, name in PLACES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(module_name)
            if hasattr(module, name):
                return module, name
    return None, ""


def prove(linear: FusedLinear, checkpoint: Checkpoint, proof: Proof) -> None:
    """Compare qweight, qzeros and scales of every part with its columns of the module, bit for bit."""
    for part in linear.parts:
        stored = checkpoint.packed(part.spec.name)
        for what in ("qweight", "qzeros", "scales"):
            differing = differs(getattr(linear.module, what, None), stored, part, what)
            if differing:
                raise BackendError(
                    f"vLLM's {linear.name} does not hold {part.spec.name} in its columns {part.first} to "
                    f"{part.last - 1}: {what} {differing}",
                    "how this release fuses linears is not understood",
                )
        proof.columns.add(part.spec.name)
    bias = getattr(linear.module, "bias", None)
    if bias is not None:
        proof.biases[linear.name] = bias.detach().clone()


def differs(held: torch.Tensor | None, stored: PackedLinear, part: Part, what: str) -> str:
    """How a module's tensor departs from the checkpoint's in that part's columns; empty where it does not."""
    if held is None:
        return "is not there"
    own: torch.Tensor = getattr(stored, what)
    per_column = part.spec.bits / 32 if what == "qzeros" else 1.0  # int32 words along N
    columns = held[:, int(part.first * per_column) : int(part.last * per_column)].detach()
    own = own.to(device=held.device, dtype=held.dtype)
    if columns.shape != own.shape:
        return f"has the shape {list(columns.shape)}, not {list(own.shape)}"
    bits = {2: torch.int16, 4: torch.int32}[own.element_size()]
    count = int((columns.contiguous().view(bits) != own.contiguous().view(bits)).sum())
    return f"differs in {count} of {own.numel()} values" if count else ""
