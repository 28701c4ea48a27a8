"""Row-parallel linears: what each rank adds to the sum, and what the sum over all ranks (the all-reduce) gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.place import Place, put
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.tap import ALL_REDUCE, Fused, Tap
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.taps import in_rows
from gptq_diff.errors import CaptureError


class Buffers:
    """What was seen of the engine's all-reduce: for which numbers of rows it writes its sum elsewhere.

    Summands of so many rows were still there afterwards, bit for bit, and need no copy before. An engine chooses its
    way by size, so modules of one width share this.
    """

    def __init__(self) -> None:
        self.apart: set[int] = set()


class Reduced:
    """A module that holds some rows of one linear.

    name: the linear's, in the checkpoint. columns: of its output. stage: where its calls are staged on a GPU.
    """

    def __init__(self, name: str, module: nn.Module, columns: int, stage: Stage, buffers: Buffers) -> None:
        self.name = name
        self._module = module
        self._stage, self._place = stage, Place(site(Fused((name,), (columns,)), ALL_REDUCE, ALL_REDUCE))
        self._buffers = buffers
        self._summand: tuple[torch.Tensor, torch.Tensor] | None = None  # as it was given, and as it is kept

    @contextlib.contextmanager
    def watched(self, tap: Tap) -> Iterator[None]:
        """Record, after every forward of the module, this rank's summand (with its bias) and the sum.

        Goes on top of the tap on its kernel: the summand is what `quant_method.apply` gives back.
        """
        method: Any = self._module.quant_method
        module: Any = self._module
        before, apply, forward = vars(method).get("apply"), method.apply, module.forward
        own_forward = vars(module).get("forward")
        apart = self._buffers.apart

        def kept(layer: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            y: torch.Tensor = apply(layer, *args, **kwargs)
            if layer is module:
                self._summand = (y, y if len(y) in apart else y.clone())
            return y

        def forward_and_look(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self._look(tap, output[0] if isinstance(output, tuple) else output)
            return output

        method.apply, module.forward = kept, forward_and_look
        try:
            yield
        finally:
            self._summand = None
            for owner, name, was in ((method, "apply", before), (module, "forward", own_forward)):
                if was is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, was)

    def _look(self, tap: Tap, total: torch.Tensor) -> None:
        """The module has given that sum."""
        if self._summand is None:
            raise CaptureError(f"{self.name} was reduced without a kernel call", "this model is not understood")
        (given, kept), self._summand = self._summand, None
        apart, rows = self._buffers.apart, len(given)
        if kept is not given:
            if given.data_ptr() != total.data_ptr() and same_bits(given, kept):  # waits for the GPU, once a size
                apart.add(rows)
        elif given.data_ptr() == total.data_ptr():
            apart.discard(rows)
            raise CaptureError(
                f"vLLM's all-reduce overwrote the summand of {self.name}, which it had left alone before",
                "run the capture again: it is copied before then",
            )
        ours, whole = in_rows(kept), in_rows(total)
        if not put(self._stage, self._place, ours, whole, None):
            tap.record(self.name, ours, whole, ALL_REDUCE, part=ALL_REDUCE)


def shared_out(linears: Sequence[FusedLinear], stage: Stage) -> list[Reduced]:
    """Those whose rows of W are shared among ranks; a module that leaves the sum to somebody else is refused."""
    found = []
    by_width: dict[int, Buffers] = {}
    for linear in linears:
        for part in linear.parts:
            if part.rows != part.spec.in_features:
                if not getattr(linear.module, "reduce_results", True) or len(linear.parts) != 1:
                    raise CaptureError(
                        f"vLLM's {linear.name} leaves its sum over the ranks to another module",
                        "this model's structure is not understood",
                    )
                columns = part.last - part.first
                buffers = by_width.setdefault(columns, Buffers())
                found.append(Reduced(part.spec.name, linear.module, columns, stage, buffers))
    return found
