"""One linear on vLLM's live Machete (Hopper only), outside any engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gptq_diff.checkpoint.packing import pack_rows, unpack_rows, unpack_zeros
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.last_made import LastMade
from gptq_diff.kernels.vllm_gemm.op import vllm_ops
from gptq_diff.records import LayerSpec, Support

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class _Weight:
    """A linear as Machete wants it. order_K: how the columns of x are to be permuted, or None."""

    packed: torch.Tensor
    scales_GN: torch.Tensor
    order_K: torch.Tensor | None


class VllmMachete(Kernel):
    """vLLM's Machete, called as its linear kernel calls it (MacheteLinearKernel of vLLM 0.20.2)."""

    name = "vllm-machete"

    def __init__(self, device: str = "cuda:0") -> None:
        self._device = torch.device(device)
        self._ops = vllm_ops()
        try:
            from vllm.model_executor.layers.quantization.utils import machete_utils
            from vllm.scalar_type import scalar_types
        except ImportError as e:
            raise BackendError(f"this vLLM keeps Machete in an unknown place: {e}", "take vLLM 0.20.2") from e
        self._utils: Any = machete_utils
        self._types = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
        self._weights: LastMade[_Weight] = LastMade(self._prepare)

    def supports(self, spec: LayerSpec) -> Support:
        """Symmetric 4 and 8 bit in the group sizes and shapes that Machete's own checks take."""
        if spec.bits not in self._types or not spec.sym:
            return Support(ok=False, reason=f"Machete takes symmetric 4 and 8 bit, not {spec.bits} bit, sym {spec.sym}")
        group_size = _machete_group(spec)
        if group_size not in self._utils.query_machete_supported_group_sizes(torch.float16):
            return Support(ok=False, reason=f"Machete refuses groups of {group_size}")
        ok, reason = self._utils.check_machete_supports_shape(spec.in_features, spec.out_features)
        return Support(ok=bool(ok), reason="" if ok else f"Machete refuses it: {reason}")

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the device of x."""
        weight = self._weights.of(linear)
        half_MK = x_MK.to(device=self._device, dtype=torch.float16)
        if weight.order_K is not None:
            half_MK = half_MK[:, weight.order_K]
        y_MN = self._ops.machete_mm(
            a=half_MK.contiguous(), b_q=weight.packed, b_type=self._types[linear.spec.bits],
            b_group_scales=weight.scales_GN, b_group_zeros=None, b_group_size=_machete_group(linear.spec),
        )  # fmt: skip
        return Product(y_MN.to(x_MK.device), "machete")

    def _prepare(self, linear: PackedLinear) -> _Weight:
        spec = linear.spec
        zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
        if bool((zeros_GN != 2 ** (spec.bits - 1)).any()):
            raise BackendError(f"{spec.name} has zero points of its own, which this kernel ignores", "another kernel")
        qweight, order_K = linear.qweight, None
        if linear.g_idx is not None:
            order_K = torch.argsort(linear.g_idx, stable=True)
            codes_KN = unpack_rows(qweight, spec.bits, spec.in_features)[order_K]
            qweight, order_K = pack_rows(codes_KN.to(torch.int32), spec.bits), order_K.to(self._device)
        on_device = qweight.to(self._device)
        packed = self._ops.machete_prepack_B(
            on_device.t().contiguous().t(), a_type=torch.float16, b_type=self._types[spec.bits],
            group_scales_type=torch.float16,
        )  # fmt: skip
        scales_GN = linear.scales.to(device=self._device, dtype=torch.float16).contiguous()
        return _Weight(packed, scales_GN, order_K)


def _machete_group(spec: LayerSpec) -> int:
    """Machete's group size: -1 for one group of all rows."""
    return -1 if spec.group_size >= spec.in_features else spec.group_size
