"""The tap on vLLM's kernel calls: `quant_method.apply` of every judged module, bias taken out and added afterwards.

Kernels add the bias in different places, some before they round. Given none, every kernel returns its own product;
the bias is added to that in its dtype, as gptq_gemm's method does by itself. For the others (Marlin, Machete, vLLM's
CPU kernel) this rounds once more than vLLM would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import nn

from gptq_diff.capture.bias_step import runs_for, spread
from gptq_diff.engines.vllm.modules import FusedLinear

Seen = Callable[[FusedLinear, torch.Tensor, torch.Tensor], None]
"""Called with the module's record, x [M, K] and y [M, N] without bias, right after the kernel."""


@dataclass(frozen=True)
class BiasTap:
    """Sees what vLLM's own call gives with the bias, on the first row alone, run once more for this.

    asks: whether it wants to see it now. again: hands on what this module gave before under the same kernel, and says
    whether there was any. seen: called with the module's record, the spread [3, N] of several runs without bias, and
    the median [1, N] of as many with it.
    """

    asks: Callable[[], bool]
    again: Callable[[FusedLinear], bool]
    seen: Callable[[FusedLinear, torch.Tensor, torch.Tensor], None]


@contextlib.contextmanager
def tapped(
    linears: Sequence[FusedLinear], biases: Mapping[str, torch.Tensor], seen: Seen, of_bias: BiasTap | None = None
) -> Iterator[None]:
    """Report every kernel call of those modules inside; biases: module name -> bias as read, before any shuffling."""
    by_module = {id(linear.module): linear for linear in linears}
    methods: list[Any] = list({id(linear.method): linear.method for linear in linears}.values())
    before = [vars(method).get("apply") for method in methods]
    try:
        for method in methods:
            method.apply = _wrapped(method.apply, by_module, biases, seen, of_bias)
        yield
    finally:
        for method, apply in zip(methods, before):
            if apply is not None:
                method.apply = apply
            elif "apply" in vars(method):
                del method.apply


def _wrapped(
    apply: Callable[..., torch.Tensor], by_module: Mapping[int, FusedLinear], biases: Mapping[str, torch.Tensor],
    seen: Seen, of_bias: BiasTap | None,
) -> Callable[..., torch.Tensor]:  # fmt: skip
    def tapped_apply(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        linear = by_module.get(id(layer))
        if linear is None:
            return apply(layer, x, bias)
        y = apply(layer, x, None)
        seen(linear, in_rows(x), in_rows(y))
        if bias is not None and of_bias is not None and of_bias.asks() and not of_bias.again(linear):
            row = in_rows(x)[:1].contiguous()
            without, with_bias = (
                spread([in_rows(apply(layer, row, added)) for _ in range(runs_for(row))]) for added in (None, bias)
            )
            of_bias.seen(linear, without, with_bias[:1])
        if bias is not None:
            y = y.add_(biases.get(linear.name, bias).to(device=y.device, dtype=y.dtype))
        return y

    return tapped_apply


def in_rows(values: torch.Tensor) -> torch.Tensor:
    """Two dimensions, the last one kept; itself where it has two."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
