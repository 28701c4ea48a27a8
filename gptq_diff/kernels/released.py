"""A release's own kernel, compiled from its sources by `gptq-diff kernels build`, on the GPU, outside its engine."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import torch

from gptq_diff.built_file import NAME, Built, read_built
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.gptqmodel_ops import ExllamaV2
from gptq_diff.kernels.vllm_ops import VllmGemm
from gptq_diff.releases import MODES, Release, backend_of_release

NAMESPACES = {"vllm": "_C", "gptqmodel": "gptqmodel_exllamav2"}
"""Below torch.ops, as the packages call them themselves."""


def release_kernel(name: str, builds: Path, device: str = "cuda:0") -> Kernel:
    """The kernel of `vllm==0.20.2:exllama`, loaded from the folder of that release's builds.

    BackendError where none of them is for this torch and this GPU, or it does not load.
    """
    found = backend_of_release(name)
    if found is None:
        raise BackendError(f"{name!r} is no kernel of a release", "write vllm==VERSION:exllama, for example")
    release, mode = found
    ops = loaded_ops(fitting(release, builds, device), release)
    path = MODES[release.package][mode]
    if release.package == "vllm":
        return VllmGemm(path, device, ops=ops, name=name)
    kernel = ExllamaV2(ops, gptqmodel=True, path=path, device=device)
    kernel.name = name
    return kernel


def fitting(release: Release, builds: Path, device: str) -> Path:
    """The library that is for this torch and the GPU of that name; BackendError with what there is instead."""
    if not torch.cuda.is_available():
        raise BackendError(
            f"the kernel of {release} needs an NVIDIA GPU, and torch {torch.__version__} sees none", "another backend"
        )
    major, minor = torch.cuda.get_device_capability(device)
    wanted = (str(torch.__version__), str(torch.version.cuda), f"{major}.{minor}")
    there: list[Built] = []
    for file in sorted(builds.glob(f"*/{NAME}")):
        built = read_built(file.parent)
        if (built.torch, built.cuda, built.arch.rstrip("a")) == wanted:
            return file.parent / built.library
        there.append(built)
    has = "; ".join(f"torch {b.torch}, CUDA {b.cuda}, GPU {b.arch}" for b in there)
    raise BackendError(
        f"{release} is not compiled for torch {wanted[0]}, CUDA {wanted[1]}, GPU {wanted[2]}"
        + (f" (there is: {has})" if has else ""),
        f"gptq-diff kernels build {release}",
    )


def loaded_ops(library: Path, release: Release) -> ModuleType:
    """The library's operations as a module like vLLM's `_custom_ops`, with their parameters' names."""
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as e:
        raise BackendError(
            f"the kernel of {release} does not load: {str(e).splitlines()[0][:300]}",
            f"gptq-diff kernels remove {release}",
        ) from e
    namespace = getattr(torch.ops, NAMESPACES[release.package])
    ops = ModuleType(f"{release} compiled")
    names = ("gptq_gemm", "gptq_shuffle") if release.package == "vllm" else ("make_q_matrix", "gemm_half_q_half")
    for name in names:
        setattr(ops, name, named(getattr(namespace, name)))
    return ops


def named(operation: Any) -> Callable[..., Any]:
    """A torch operation as a function whose signature can be inspected."""
    names = [argument.name for argument in operation.default._schema.arguments]

    def call(*args: Any, **kwargs: Any) -> Any:
        return operation(*args, **kwargs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
