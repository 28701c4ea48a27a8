"""The tap on a library's quantised linears: every module's forward, its bias taken out and added afterwards.

Given no bias, a module returns the kernel's own product. The bias is added to that in its dtype, as auto_gptq and
GPTQModel's torch and exllama modules do by themselves; Marlin adds it before it rounds, so there this rounds once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import torch

from gptq_diff.capture.bias_step import runs_for, spread
from gptq_diff.engines.hosted.modules import HostedLinear

Seen = Callable[[HostedLinear, torch.Tensor, torch.Tensor], None]
"""Called with the linear, x [M, K] and y [M, N] without bias, right after the kernel."""


@dataclass(frozen=True)
class BiasTap:
    """Sees what the module itself gives with its bias, on the first row alone, run once more for this.

    asks: whether it wants to see it now. seen: called with the linear, the spread [3, N] of several runs without bias,
    and the median [1, N] of as many with it.
    """

    asks: Callable[[], bool]
    seen: Callable[[HostedLinear, torch.Tensor, torch.Tensor], None]


@contextlib.contextmanager
def tapped(
    linears: Sequence[HostedLinear], biases: Mapping[str, torch.Tensor], seen: Seen, of_bias: BiasTap | None = None
) -> Iterator[None]:
    """Report every kernel call of those modules inside; biases: linear -> bias as read, before any shuffling."""
    with contextlib.ExitStack() as undo:
        for linear in linears:
            undo.enter_context(_watched(linear, biases.get(linear.spec.name), seen, of_bias))
        yield


@contextlib.contextmanager
def _watched(linear: HostedLinear, bias: torch.Tensor | None, seen: Seen, of_bias: BiasTap | None) -> Iterator[None]:
    """Give one module another forward, and take it away again."""
    module: Any = linear.module
    before = vars(module).get("forward")
    forward = module.forward

    def tapped_forward(x: torch.Tensor) -> torch.Tensor:
        with without_bias(module):
            y: torch.Tensor = forward(x)
        seen(linear, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
        if bias is not None and of_bias is not None and of_bias.asks():
            row = x.reshape(-1, x.shape[-1])[:1].contiguous()
            runs = range(runs_for(row))
            with without_bias(module):
                without = spread([forward(row).reshape(1, -1) for _ in runs])
            of_bias.seen(linear, without, spread([forward(row).reshape(1, -1) for _ in runs])[:1])
        return y if bias is None else y + bias.to(device=y.device, dtype=y.dtype)

    module.forward = tapped_forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextlib.contextmanager
def without_bias(module: Any) -> Iterator[None]:
    """Inside, the module has no bias, so that its forward returns the kernel's own product."""
    bias = module.bias
    module.bias = None
    try:
        yield
    finally:
        module.bias = bias
