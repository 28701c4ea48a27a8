"""One linear on vLLM's live kernels, outside any engine: a captured x, the checkpoint's own packed weight.

Needs an NVIDIA GPU and vLLM in this interpreter. The last weight prepared is kept on the GPU.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from gptq_diff.checkpoint.packing import unpack_zeros
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.fastpath import refusal
from gptq_diff.kernels.last_made import LastMade
from gptq_diff.kernels.vllm_gemm.op import GemmWeight, multiply, shuffled, vllm_ops
from gptq_diff.kernels.vllm_gemm.paths import PathGuard
from gptq_diff.records import LayerSpec, Support

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


class VllmGemm(Kernel):
    """`gptq_gemm` on the GPU.

    path: "exllama-fast" or "exllama-reconstruct", forced by rows, or None for the one that M picks.
    ops: gptq_gemm and gptq_shuffle; those of the vLLM in this interpreter, if none are given. name: of the kernel.
    """

    def __init__(
        self, path: str | None, device: str = "cuda:0", *, ops: ModuleType | None = None, name: str = ""
    ) -> None:
        self.name = name or f"vllm-{path or 'gptq'}"
        self._device = device
        self._ops = vllm_ops() if ops is None else ops
        self._guard = PathGuard(self._ops, device)
        self._guard.force = path
        self._weights: LastMade[GemmWeight] = LastMade(lambda linear: shuffled(self._ops, linear, device))

    def supports(self, spec: LayerSpec) -> Support:
        """What gptq_gemm can multiply: bit widths, shapes and group sizes."""
        reason = refusal(spec.bits, spec.in_features, spec.group_size)
        return Support(ok=not reason, reason=reason)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the device of x."""
        half_MK = x_MK.to(device=self._device, dtype=torch.float16).contiguous()
        y_MN = multiply(self._guard, half_MK, self._weights.of(linear))
        return Product(y_MN.to(x_MK.device), self._guard.taken() or self.name)


class VllmMarlin(Kernel):
    """vLLM's Marlin on the GPU, called as its linear method calls it (vLLM 0.20.2)."""

    name = "vllm-marlin"

    def __init__(self, device: str = "cuda:0") -> None:
        self._device = torch.device(device)
        self._ops = vllm_ops()
        try:
            from vllm.model_executor.layers.quantization.utils import marlin_utils
            from vllm.scalar_type import scalar_types
        except ImportError as e:
            raise BackendError(f"this vLLM keeps Marlin in an unknown place: {e}", "take vLLM 0.20.2") from e
        self._utils: Any = marlin_utils
        self._types = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
        self._weights: LastMade[dict[str, Any]] = LastMade(self._prepare)

    def supports(self, spec: LayerSpec) -> Support:
        """Symmetric 4 and 8 bit in shapes and group sizes that Marlin's own check takes."""
        if spec.bits not in self._types or not spec.sym:
            return Support(ok=False, reason=f"Marlin takes symmetric 4 and 8 bit, not {spec.bits} bit, sym {spec.sym}")
        ok, reason = self._utils.check_marlin_supports_shape(
            spec.out_features, spec.in_features, spec.in_features, _marlin_group(spec)
        )
        return Support(ok=bool(ok), reason="" if ok else f"Marlin refuses it: {reason}")

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the device of x."""
        half_MK = x_MK.to(device=self._device, dtype=torch.float16).contiguous()
        y_MN = self._utils.apply_gptq_marlin_linear(input=half_MK, **self._weights.of(linear))
        return Product(y_MN.to(x_MK.device), "marlin")

    def _prepare(self, linear: PackedLinear) -> dict[str, Any]:
        spec, device, utils = linear.spec, self._device, self._utils
        zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
        if bool((zeros_GN != 2 ** (spec.bits - 1)).any()):
            raise BackendError(f"{spec.name} has zero points of its own, which Marlin does not read", "another kernel")
        groups, order = utils.marlin_make_empty_g_idx(device), utils.marlin_make_empty_g_idx(device)
        if linear.g_idx is not None:
            groups, order = utils.marlin_sort_g_idx(linear.g_idx.to(device))
        k, n = spec.in_features, spec.out_features
        scales = linear.scales.to(device=device, dtype=torch.float16).contiguous()
        return {
            "weight": self._ops.gptq_marlin_repack(
                linear.qweight.to(device).contiguous(), perm=order, size_k=k, size_n=n, num_bits=spec.bits
            ),
            "weight_scale": utils.marlin_permute_scales(scales, size_k=k, size_n=n, group_size=_marlin_group(spec)),
            "weight_zp": utils.marlin_make_empty_g_idx(device),
            "g_idx": groups,
            "g_idx_sort_indices": order,
            "workspace": utils.marlin_make_workspace_new(device),
            "wtype": self._types[spec.bits],
            "output_size_per_partition": n,
            "input_size_per_partition": k,
            "is_k_full": True,
        }


def _marlin_group(spec: LayerSpec) -> int:
    """Marlin's group size: -1 for one group of all rows."""
    return -1 if spec.group_size >= spec.in_features else spec.group_size
