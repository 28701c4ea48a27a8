"""What the live exllama kernels of auto_gptq and GPTQModel have in common: shapes, the path by rows, and a probe."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.last_made import LastMade
from gptq_diff.kernels.vllm_gemm.boundary import PROBE_K, PROBE_N, rows_like_one
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT, in_rows
from gptq_diff.records import LayerSpec, Support


@dataclass(frozen=True)
class Prepared:
    """A weight on the GPU as a kernel wants it; handle points into `keep`, which must outlive it."""

    handle: int
    columns: int
    keep: Sequence[torch.Tensor | None]


class LiveExllama(Kernel):
    """An exllama kernel.

    fused: the name of its fused path. path: that one or RECONSTRUCT, forced by rows, or None for the one that M picks.
    """

    fused: str

    def __init__(self, name: str, path: str | None, device: str) -> None:
        self.name = name
        self._path = path
        self._device = device
        self._weights: LastMade[Prepared] = LastMade(self.prepare)
        self._limit: int | None = None

    @property
    def fused_rows(self) -> int:
        """Rows up to which the fused path runs: found by trying, at the first question."""
        if self._limit is None:
            weight = self.prepare(probe())
            draw = torch.Generator().manual_seed(7)
            x_1K = torch.randn((1, PROBE_K), generator=draw).to(device=self._device, dtype=torch.float16)
            self._limit = rows_like_one(lambda x_MK: self.run(x_MK, weight), x_1K)
        return self._limit

    def supports(self, spec: LayerSpec) -> Support:
        """4 bit, K and N divisible by 32, whole groups of a power of two."""
        size, reason = spec.group_size, ""
        if spec.bits != 4:
            reason = f"exllama takes 4 bit, not {spec.bits} bit"
        elif spec.in_features % 32 or spec.out_features % 32:
            reason = f"exllama takes K and N divisible by 32, not {spec.in_features} and {spec.out_features}"
        elif spec.in_features % size or (size & (size - 1) and size != spec.in_features) or size % 32:
            reason = f"exllama does not take groups of {size} rows for K={spec.in_features}"
        return Support(ok=not reason, reason=reason)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the device of x."""
        half_MK = x_MK.to(device=self._device, dtype=torch.float16).contiguous()
        weight = self._weights.of(linear)
        path = self._path or (self.fused if len(half_MK) <= self.fused_rows else RECONSTRUCT)
        forced = FAST if path == self.fused else RECONSTRUCT
        y_MN = in_rows(lambda part: self.run(part, weight), half_MK, self.fused_rows, forced)
        return Product(y_MN.to(x_MK.device), path)

    def run(self, x_MK: torch.Tensor, weight: Prepared, out_MN: torch.Tensor | None = None) -> torch.Tensor:
        """One call, as the library makes it: into memory that nobody has written to, or into `out_MN`."""
        if out_MN is None:
            out_MN = torch.empty((x_MK.shape[0], weight.columns), dtype=torch.float16, device=x_MK.device)
        self.call(x_MK, weight.handle, out_MN)
        return out_MN

    @abc.abstractmethod
    def prepare(self, linear: PackedLinear) -> Prepared:
        """The weight on the GPU, handed to the kernel."""

    @abc.abstractmethod
    def call(self, x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor) -> None:
        """The bare kernel."""


def on_device(linear: PackedLinear, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies of qweight (kernels shuffle it in place), qzeros and float16 scales."""
    return (
        linear.qweight.to(device).contiguous().clone(),
        linear.qzeros.to(device).contiguous(),
        linear.scales.to(device=device, dtype=torch.float16).contiguous(),
    )


def probe() -> PackedLinear:
    """A random weight of one 128-row block and one group, on which no path adds by atomics."""
    draw = torch.Generator().manual_seed(4)

    def words(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, (rows, columns), generator=draw, dtype=torch.int64).to(torch.int32)

    spec = LayerSpec("probe", PROBE_K, PROBE_N, 4, PROBE_K, sym=False, desc_act=False, format="gptq", has_bias=False)
    scales = (0.005 + 0.01 * torch.rand((1, PROBE_N), generator=draw)).to(torch.float16)
    return PackedLinear(spec, words(PROBE_K // 8, PROBE_N), words(1, PROBE_N // 8), scales, None, None)
