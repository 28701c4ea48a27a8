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
    """One linear of the checkpoint inside a module, or a tensor-parallel rank's share of it.

    first, last: its columns first to last - 1 of the module's output.
    rows: rows of W that the module holds; the linear's in_features where they are not shared out.
    """

    spec: LayerSpec
    first: int
    last: int
    rows: int


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


def fused_linears(model: nn.Module, layers: Sequence[LayerSpec], ranks: int = 1) -> list[FusedLinear]:
    """Every quantised module with the checkpoint's linears that it holds; ranks: the tensor-parallel size.

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
            found.append(FusedLinear(name, module, split(name, module, [specs[n] for n in names], ranks)))
    if not found:
        raise BackendError("vLLM runs this model without any GPTQ linear", "it loaded it in another way")
    return found


def part_names(name: str, mapping: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The checkpoint's names of what is fused in the module `name`; itself where nothing is."""
    parent, dot, leaf = name.rpartition(".")
    return tuple(parent + dot + part for part in mapping.get(leaf, (leaf,)))


def split(name: str, module: nn.Module, specs: Sequence[LayerSpec], ranks: int = 1) -> tuple[Part, ...]:
    """The columns of each linear, in the order given; refused where vLLM states sizes that no even sharing gives."""
    ours = [spec.out_features for spec in specs]
    stated = [int(n) for n in getattr(module, "output_partition_sizes", None) or ours]
    if len(stated) != len(ours) or not all(_share(n, whole, ranks) for n, whole in zip(stated, ours)):
        raise BackendError(
            f"vLLM's {name} holds columns {stated} and the checkpoint's linears have {ours}",
            "its split is not understood",
        )
    parts, first = [], 0
    for spec, columns in zip(specs, stated):
        rows = int(getattr(module, "input_size_per_partition", spec.in_features))
        if not _share(rows, spec.in_features, ranks):
            raise BackendError(
                f"vLLM's {name} takes {rows} inputs and {spec.name} has {spec.in_features}",
                "its sharing among ranks is not understood",
            )
        parts.append(Part(spec, first, first + columns, rows))
        first += columns
    return tuple(parts)


def _share(part: int, whole: int, ranks: int) -> bool:
    """Whether `part` is the whole, or an even share of it among at most that many ranks."""
    return part > 0 and whole % part == 0 and whole // part <= ranks
