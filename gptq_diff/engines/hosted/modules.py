"""Which of a library's modules is which quantised linear of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gptq_diff.errors import BackendError
from gptq_diff.records import LayerSpec


@dataclass(frozen=True)
class HostedLinear:
    """One quantised linear of the checkpoint and the module that does it in the library's model."""

    spec: LayerSpec
    module: nn.Module

    @property
    def kind(self) -> str:
        """The library's own name of the kernel: auto_gptq and GPTQModel call it QUANT_TYPE."""
        return str(getattr(self.module, "QUANT_TYPE", type(self.module).__name__))


def hosted_linears(model: nn.Module, layers: Sequence[LayerSpec], library: str) -> list[HostedLinear]:
    """Every module with packed weights, in the order of the checkpoint's layers.

    BackendError when there is none, or when one of them is no linear of the checkpoint.
    """
    packed = {name: module for name, module in model.named_modules() if getattr(module, "qweight", None) is not None}
    unknown = sorted(packed.keys() - {spec.name for spec in layers})
    if unknown:
        raise BackendError(
            f"{library}'s quantised module {unknown[0]} is no quantised linear of the checkpoint",
            "it quantises other modules than this checkpoint does",
        )
    if not packed:
        raise BackendError(f"{library} runs this model without any GPTQ linear", "it loaded it in another way")
    return [HostedLinear(spec, packed[spec.name]) for spec in layers if spec.name in packed]
