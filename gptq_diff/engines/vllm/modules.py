"""vLLM's quantised modules: which kernel each really runs, and which linears of the checkpoint it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gptq_diff.errors import BackendError
from gptq_diff.records import LayerSpec

GEMM = "gptq_gemm"
PATHS = {
    "GPTQLinearMethod": GEMM,
    "ExllamaLinearKernel": GEMM,
    "MarlinLinearKernel": "marlin",
    "MacheteLinearKernel": "machete",
    "CPUWNA16LinearKernel": "vllm-cpu-w4a16",
}
"""Class of the kernel, or of a method without one -> the path it runs, or GEMM, whose path depends on the rows."""


@dataclass(frozen=True)
class Part:
    """One linear of the checkpoint inside a module: its columns first to last - 1 of the module's output."""

    spec: LayerSpec
    first: int
    last: int


@dataclass(frozen=True)
class FusedLinear:
    """One quantised module of vLLM.

    name: vLLM's own. parts: in the order of its columns; one where nothing is fused.
    """

    name: str
    module: nn.Module
    parts: tuple[Part, ...]

    @property
    def method(self) -> Any:
        """The quantisation method of the module; its `apply` is the kernel call."""
        return self.module.quant_method

    @property
    def kernel_class(self) -> str:
        """The class that multiplies: the chosen kernel's, or the method's own where it has none to choose."""
        kernel = getattr(self.method, "kernel", None)
        return type(self.method if kernel is None else kernel).__name__

    @property
    def path(self) -> str | None:
        """PATHS of the kernel; None for a class that is not known."""
        return PATHS.get(self.kernel_class)


def is_quantised(module: nn.Module) -> bool:
    """Whether a module's kernel call goes through one of vLLM's GPTQ methods."""
    return "gptq" in type(getattr(module, "quant_method", None)).__name__.lower()


def fused_linears(model: nn.Module, layers: Sequence[LayerSpec]) -> list[FusedLinear]:
    """Every quantised module with the checkpoint's linears that it holds.

    model.packed_modules_mapping names what is fused (qkv_proj -> q_proj, k_proj, v_proj). BackendError for a module
    whose linears the checkpoint does not have, or whose columns are not the sum of theirs.
    """
    specs = {spec.name: spec for spec in layers}
    mapping = getattr(model, "packed_modules_mapping", None) or {}
    found = []
    for name, module in model.named_modules():
        if is_quantised(module):
            names = part_names(name, mapping)
            unknown = [n for n in names if n not in specs]
            if unknown:
                raise BackendError(
                    f"vLLM's quantised module {name} has no linear {unknown[0]} in the checkpoint",
                    "its names, or what it fuses, follow another scheme",
                )
            found.append(FusedLinear(name, module, split(name, module, [specs[n] for n in names])))
    if not found:
        raise BackendError("vLLM runs this model without any GPTQ linear", "it loaded it in another way")
    return found


def part_names(name: str, mapping: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The checkpoint's names of what is fused in the module `name`; itself where nothing is."""
    parent, dot, leaf = name.rpartition(".")
    return tuple(parent + dot + part for part in mapping.get(leaf, (leaf,)))


def split(name: str, module: nn.Module, specs: Sequence[LayerSpec]) -> tuple[Part, ...]:
    """The columns of each linear, in the order given; refused where vLLM states other sizes."""
    parts, first = [], 0
    for spec in specs:
        parts.append(Part(spec, first, first + spec.out_features))
        first += spec.out_features
    stated = getattr(module, "output_partition_sizes", None)
    ours = [spec.out_features for spec in specs]
    if stated is not None and [int(n) for n in stated] != ours:
        raise BackendError(
            f"vLLM's {name} holds columns {[int(n) for n in stated]} and the checkpoint's linears have {ours}",
            "its split is not understood",
        )
    return tuple(parts)
