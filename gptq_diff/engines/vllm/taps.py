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

Seen = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with x [M, K] and y [M, N] without bias, right after the kernel of one module."""


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


class _Site:
    """One tapped module, with its bias as read (None: as vLLM hands it over)."""

    def __init__(self, linear: FusedLinear, seen: Seen, bias: torch.Tensor | None, of_bias: BiasTap | None) -> None:
        self.linear = linear
        self.seen = seen
        self._bias = bias
        self._of_bias = of_bias

    def add_bias(self, apply: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor, bias: Any) -> torch.Tensor:
        """The output with the bias, which is looked at by itself where that is asked for."""
        of_bias, linear = self._of_bias, self.linear
        if of_bias is not None and of_bias.asks() and not of_bias.again(linear):
            row = in_rows(x)[:1].contiguous()
            without, with_bias = (
                spread([in_rows(apply(linear.module, row, added)) for _ in range(runs_for(row))])
                for added in (None, bias)
            )
            of_bias.seen(linear, without, with_bias[:1])
        added: torch.Tensor = bias if self._bias is None else self._bias
        if added.dtype is not y.dtype or added.device != y.device:
            added = added.to(device=y.device, dtype=y.dtype)
        return y.add_(added)


@contextlib.contextmanager
def tapped(
    linears: Sequence[FusedLinear], biases: Mapping[str, torch.Tensor], seen: Callable[[FusedLinear], Seen],
    of_bias: BiasTap | None = None,
) -> Iterator[None]:  # fmt: skip
    """Report every kernel call of those modules inside.

    seen: gives what is to be told of a module. biases: module name -> bias as read, before any shuffling.
    """
    sites = {id(one.module): _Site(one, seen(one), biases.get(one.name), of_bias) for one in linears}
    methods: list[Any] = list({id(linear.method): linear.method for linear in linears}.values())
    before = [vars(method).get("apply") for method in methods]
    try:
        for method in methods:
            method.apply = _wrapped(method.apply, sites)
        yield
    finally:
        for method, apply in zip(methods, before):
            if apply is not None:
                method.apply = apply
            elif "apply" in vars(method):
                del method.apply


def _wrapped(apply: Callable[..., torch.Tensor], sites: Mapping[int, _Site]) -> Callable[..., torch.Tensor]:
    """What a prefill waits for is this process, so nothing is done here that can be done before or later."""

    def tapped_apply(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        site = sites.get(id(layer))
        if site is None:
            return apply(layer, x, bias)
        y = apply(layer, x, None)
        site.seen(in_rows(x), in_rows(y))
        return y if bias is None else site.add_bias(apply, x, y, bias)

    return tapped_apply


def in_rows(values: torch.Tensor) -> torch.Tensor:
    """Two dimensions, the last one kept; itself where it has two."""
    return values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
