"""What a user would write to see every linear's input and output: torch's forward hooks, nothing of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gptq_diff.engines.vllm.modules import is_quantised

Keep = Callable[[torch.Tensor], Any]

KINDS: dict[str, Keep] = {
    "hooks, largest magnitude": lambda t: float(t.abs().max()),
    "hooks, clones on the GPU": lambda t: t.clone(),
    "hooks, copied to the CPU": lambda t: t.cpu(),
}
SLOW = frozenset({"hooks, copied to the CPU"})


@contextlib.contextmanager
def hooked(model: nn.Module, keep: Keep) -> Iterator[list[Any]]:
    """A forward hook on every quantised module inside; what they kept."""
    kept: list[Any] = []

    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        kept.append((keep(inputs[0]), keep(y)))

    handles = [module.register_forward_hook(hook) for module in model.modules() if is_quantised(module)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
