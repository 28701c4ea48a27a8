"""Row-parallel linears: what each rank adds to the sum, and what the sum over all ranks (the all-reduce) gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.place import Place, put
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.tap import ALL_REDUCE, Fused, Tap
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.taps import in_rows
from gptq_diff.errors import CaptureError


class Reduced:
    """A module that holds some rows of one linear.

    name: the linear's, in the checkpoint. columns: of its output. stage: where its calls are staged on a GPU.
    """

    def __init__(self, name: str, module: nn.Module, columns: int, stage: Stage) -> None:
        self.name = name
        self._module = module
        self._stage, self._place = stage, Place(site(Fused((name,), (columns,)), ALL_REDUCE, ALL_REDUCE))

    @contextlib.contextmanager
    def watched(self, tap: Tap) -> Iterator[None]:
        """Record, after every forward of the module, this rank's summand (with its bias) and the sum.

        Goes on top of the tap on its kernel: the summand is what `quant_method.apply` gives back, copied at once, since
        an all-reduce may work in place.
        """
        method: Any = self._module.quant_method
        before, apply = vars(method).get("apply"), method.apply
        summand: list[torch.Tensor] = []

        def kept(layer: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            y: torch.Tensor = apply(layer, *args, **kwargs)
            if layer is self._module:
                summand[:] = [y.detach().clone()]
            return y

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            total = output[0] if isinstance(output, tuple) else output
            if not summand:
                raise CaptureError(f"{self.name} was reduced without a kernel call", "this model is not understood")
            ours, whole = in_rows(summand.pop()), in_rows(total)
            if not put(self._stage, self._place, ours, whole, None):
                tap.record(self.name, ours, whole, ALL_REDUCE, part=ALL_REDUCE)

        method.apply = kept
        hook = self._module.register_forward_hook(after)
        try:
            yield
        finally:
            hook.remove()
            if before is None:
                del method.apply
            else:
                method.apply = before


def shared_out(linears: Sequence[FusedLinear], stage: Stage) -> list[Reduced]:
    """Those whose rows of W are shared among ranks; a module that leaves the sum to somebody else is refused."""
    found = []
    for linear in linears:
        for part in linear.parts:
            if part.rows != part.spec.in_features:
                if not getattr(linear.module, "reduce_results", True) or len(linear.parts) != 1:
                    raise CaptureError(
                        f"vLLM's {linear.name} leaves its sum over the ranks to another module",
                        "this model's structure is not understood",
                    )
                found.append(Reduced(part.spec.name, linear.module, part.last - part.first, stage))
    return found
