"""auto_gptq's kernels: which a route asks for, and where each of them lies in the wheel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_diff.errors import BackendError
from gptq_diff.kernels.gptqmodel_ops import auto_gptq_exllama, auto_gptq_exllamav2

if TYPE_CHECKING:
    from gptq_diff.kernels.exllama_live import LiveExllama

TORCH = frozenset({"cuda-old", "cuda"})
"""Kinds (QUANT_TYPE) whose modules dequantise and call torch.matmul, unless an old CUDA kernel of theirs is there."""
EXLLAMA = {"exllama": auto_gptq_exllama, "exllamav2": auto_gptq_exllamav2}
"""Kinds that need the wheel's CUDA parts and an NVIDIA GPU -> what loads the part."""


@dataclass(frozen=True)
class Route:
    """One way into auto_gptq on a GPU.

    disable_exllama, disable_exllamav2: arguments of from_quantized. kind: the exllama kernel that it comes to where
    that can be loaded, or None. must: whether nothing else will do.
    """

    disable_exllama: bool | None
    disable_exllamav2: bool
    kind: str | None
    must: bool


ROUTES = {
    "auto": Route(None, disable_exllamav2=False, kind="exllamav2", must=False),
    "torch": Route(disable_exllama=True, disable_exllamav2=True, kind=None, must=False),
    "exllama": Route(disable_exllama=False, disable_exllamav2=True, kind="exllama", must=True),
    "exllamav2": Route(disable_exllama=True, disable_exllamav2=False, kind="exllamav2", must=True),
}


def route_named(name: str, device: str) -> Route:
    """The route of that name; on a CPU, where exllama cannot run, auto_gptq's own choice means its torch path."""
    if name not in ROUTES:
        raise BackendError(f"there is no way into auto_gptq called {name!r}", f"the ways are {', '.join(ROUTES)}")
    if device != "cpu":
        return ROUTES[name]
    if ROUTES[name].must:
        raise BackendError(f"auto_gptq's {name} kernel needs an NVIDIA GPU, and torch sees none", "take `auto-gptq`")
    return ROUTES["torch"]


def fused_rows(route: Route, device: str) -> dict[str, int]:
    """Kind of the exllama kernel that the route comes to -> rows up to which its fused path runs, found by trying.

    Empty where there is none; BackendError with the reason where it is a must and cannot be loaded. To be asked before
    the model is loaded: exllama v1 has one set of buffers, which the model's then replace.
    """
    if route.kind is None:
        return {}
    try:
        kernel: LiveExllama = EXLLAMA[route.kind](device=device)
    except BackendError:
        if route.must:
            raise
        return {}
    return {route.kind: kernel.fused_rows}
