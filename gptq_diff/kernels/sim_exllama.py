"""The kernel `sim-exllama`: vLLM's fused fast path, simulated, whatever M is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.checkpoint.dequant import unscaled_codes
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.fastpath import (
    CHAINS,
    LaneSum,
    PreparedWeight,
    largest_lane_sum,
    prepare,
    refusal,
    run_packed,
    run_prepared,
    spread_prepared,
)
from gptq_diff.kernels.tiled import TiledWeight, can_tile
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET, WeightStore
from gptq_diff.numerics.fp16 import Float16
from gptq_diff.records import LayerSpec, Support

PATH = "exllama-fast"


@dataclass(frozen=True)
class OrderedWeight:
    """A weight with its rows in the kernel's order.

    weight: in strips. order_K: int64 [K], the row of x that each row multiplies; None when they are in order already.
    """

    weight: PreparedWeight
    order_K: npt.NDArray[np.int64] | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.weight.nbytes + (0 if self.order_K is None else self.order_K.nbytes)

    def columns_of(self, x_MK: torch.Tensor) -> Float16:
        """X as float16 on the CPU, its columns in the kernel's order."""
        halves: Float16 = x_MK.detach().to("cpu", torch.float16).contiguous().numpy()
        return halves if self.order_K is None else np.ascontiguousarray(halves[:, self.order_K])


class SimExllama(Kernel):
    """`gptq_gemm`'s fused kernel, rounding by rounding; error model "exllama-fast"."""

    name = "sim-exllama"
    takes_half = True
    on_host = True

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._weights: WeightStore[OrderedWeight] = WeightStore(cache_bytes)

    def supports(self, spec: LayerSpec) -> Support:
        """What vLLM's kernel can multiply: bit widths, shapes and group sizes."""
        return fast_path_support(spec)

    def arithmetic(self, rows: int, linear: PackedLinear) -> str:  # noqa: ARG002
        """The fast path, whatever the rows are."""
        return PATH

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the CPU; float32 x is rounded to float16 first, as the kernel takes no other."""
        if as_it_lies(linear):
            halves = x_MK.detach().to("cpu", torch.float16).contiguous().numpy()
            return Product(torch.from_numpy(run_packed(halves, TiledWeight.of(as_vllm_loads(linear)))), PATH)
        ordered = self._ordered(linear)
        return Product(torch.from_numpy(run_prepared(ordered.columns_of(x_MK), ordered.weight)), PATH)

    def spread(
        self, x_MK: torch.Tensor, linear: PackedLinear, order: Literal["worst", "random"] = "worst"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Y float16 [M, N] and its expected rounding error float32 [M, N]: `fastpath.fast_path_spread`."""
        ordered = self._ordered(linear)
        y_MN, rms_MN = spread_prepared(ordered.columns_of(x_MK), ordered.weight, order)
        return torch.from_numpy(y_MN), torch.from_numpy(rms_MN)

    def largest_lane_sum(self, x_MK: torch.Tensor, linear: PackedLinear) -> LaneSum | None:
        """The largest partial sum before the scale; its `rows` are channels of x as given, desc_act or not."""
        ordered = self._ordered(linear)
        found = largest_lane_sum(ordered.columns_of(x_MK), ordered.weight)
        if found is None or ordered.order_K is None:
            return found
        return replace(found, rows=tuple(int(ordered.order_K[row]) for row in found.rows))

    def _ordered(self, linear: PackedLinear) -> OrderedWeight:
        return self._weights.get(linear.spec.name, lambda: order_rows(linear))


def as_it_lies(linear: PackedLinear) -> bool:
    """Whether a large linear is simulated from its packed form: 4 bit, rows of K in their order, nothing kept."""
    ordered = linear.g_idx is None or not linear.spec.desc_act
    return ordered and linear.spec.bits == 4 and can_tile(linear) and fast_path_support(linear.spec).ok


def fast_path_support(spec: LayerSpec) -> Support:
    """Whether the fused kernel takes a layer of that shape and format, with the reason why not."""
    reason = refusal(spec.bits, spec.in_features, spec.group_size)
    columns = CHAINS[spec.bits].columns if spec.bits in CHAINS else 1
    if not reason and spec.out_features % columns:
        reason = f"out_features {spec.out_features} is not a multiple of {columns}, as vLLM wants for {spec.bits} bit"
    return Support(ok=not reason, reason=reason)


def order_rows(linear: PackedLinear) -> OrderedWeight:
    """Unpack a linear, with desc_act its rows sorted by group.

    vLLM sorts g_idx with `torch.argsort` (not a stable sort; the order inside a group decides last bits only) and
    drops a stored g_idx without desc_act: `GPTQLinearMethod.process_weights_after_loading` in
    https://github.com/vllm-project/vllm/blob/v0.20.2/vllm/model_executor/layers/quantization/gptq.py
    Raises BackendError when the groups do not have group_size rows each: the kernel counts rows, not g_idx.
    """
    linear = as_vllm_loads(linear)
    spec = linear.spec
    support = fast_path_support(spec)
    if not support.ok:
        raise BackendError(f"{spec.name}: {support.reason}", "leave this backend out for this model")
    codes_KN = unscaled_codes(linear).cpu().numpy()
    scales_GN = linear.scales.cpu().numpy()
    order_K = None
    if linear.g_idx is not None:
        g_idx = linear.g_idx.cpu().numpy().astype(np.int64)
        order_K = np.argsort(g_idx, kind="stable")
        if not np.array_equal(g_idx[order_K], np.arange(spec.in_features) // spec.group_size):
            raise BackendError(
                f"{spec.name}: not every group in g_idx has {spec.group_size} rows, as vLLM's kernel assumes",
                "leave this backend out for this model",
            )
        if np.array_equal(g_idx, g_idx[order_K]):
            order_K = None
        else:
            codes_KN = codes_KN[order_K]
    return OrderedWeight(prepare(codes_KN, scales_GN, min(spec.group_size, spec.in_features), spec.bits), order_K)


def as_vllm_loads(linear: PackedLinear) -> PackedLinear:
    """The same linear with float16 scales, and without g_idx where the config has no desc_act (see `order_rows`)."""
    g_idx = linear.g_idx if linear.spec.desc_act else None
    return replace(linear, g_idx=g_idx, scales=linear.scales.to(torch.float16))
