"""Proof of what lies between the quantised linears: embeddings, norms and other linears against the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from gptq_diff.engines.hosted.proof import differs
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint


def prove_rest(model: nn.Module, checkpoint: Checkpoint, library: str) -> list[str]:
    """Compare every parameter that the checkpoint stores outside its quantised linears; returns what was filled in.

    A tied embedding is the one thing that is filled in: where lm_head.weight is not stored beside it (auto_gptq's own
    checkpoints store it), auto_gptq ties the embedding that it has read to the lm_head that it has not, whose memory
    nobody has written to. Any other difference is a BackendError.
    """
    stored, filled = frozenset(checkpoint.tensor_names()), []
    quantised = {spec.name for spec in checkpoint.layers}
    for name, parameter in model.named_parameters():
        if name not in stored or name.rpartition(".")[0] in quantised:
            continue
        own = checkpoint.tensor(name)
        differing = differs(parameter, own)
        if differing and not _tied(model, parameter, stored):
            raise BackendError(
                f"{library}'s {name} is not the checkpoint's: it {differing}",
                "how this release reads such a checkpoint is not understood",
            )
        if differing:
            with torch.no_grad():
                parameter.copy_(own)
            filled.append(name)
    return filled


def _tied(model: nn.Module, parameter: nn.Parameter, stored: frozenset[str]) -> bool:
    """Whether that is the weight of the embedding and of the lm_head at once, and stored for the first alone."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None or getattr(head, "weight", None) is not parameter:
        return False
    place = next(name for name, module in model.named_modules() if module is head)
    return f"{place}.weight" not in stored
