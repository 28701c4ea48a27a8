"""One product of a quantised linear as plain numbers, from which parts can be taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros, unpack_rows, unpack_zeros
from gptq_diff.records import LayerSpec

if TYPE_CHECKING:
    from gptq_diff.compare.judge import Weight

BLOCK = 128
"""Rows of K that go together: what one block of exllama's kernels adds up; Marlin wants K to be a multiple of it."""


@dataclass(frozen=True)
class Call:
    """y[M, N] = x[M, K] W[K, N] with W[k, n] = (codes[k, n] - zeros[g, n]) * scales[g, n], g = k // group_size.

    x_MK: float16. codes_KN: int16, 0 to 2^bits - 1. zeros_GN: int16, true zero points. scales_GN: float16.
    format: of the checkpoint, which says how zero points are stored.
    """

    x_MK: torch.Tensor
    codes_KN: torch.Tensor
    zeros_GN: torch.Tensor
    scales_GN: torch.Tensor
    bits: int
    group_size: int
    format: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, K, N."""
        return (*self.x_MK.shape, self.codes_KN.shape[1])

    @property
    def inputs(self) -> list[tuple[int, int]]:
        """(row, k) of every input that is not zero, in order."""
        return [(int(m), int(k)) for m, k in torch.nonzero(self.x_MK)]

    @property
    def centred(self) -> torch.Tensor:
        """Code minus zero point, int16 [K, N]."""
        return self.codes_KN - self.zeros_GN[self.groups_of_rows]

    @property
    def groups_of_rows(self) -> torch.Tensor:
        """The group of every row of K."""
        return torch.arange(self.codes_KN.shape[0]) // self.group_size

    def exact(self) -> torch.Tensor:
        """The exact answer, float64 [M, N]."""
        return self.x_MK.double() @ self.weight()

    def weight(self) -> torch.Tensor:
        """W, float64 [K, N]."""
        return self.centred.double() * self.scales_GN.double()[self.groups_of_rows]

    def products(self) -> torch.Tensor:
        """The sums of the products' magnitudes, float64 [M, N]: as large as the exact answer where none cancel."""
        return self.x_MK.double().abs() @ self.weight().abs()

    def with_x(self, x_MK: torch.Tensor) -> Call:
        """Another input of the same shape."""
        return replace(self, x_MK=x_MK)

    def only(self, inputs: Sequence[tuple[int, int]]) -> Call:
        """Every other input set to zero."""
        x_MK = torch.zeros_like(self.x_MK)
        for m, k in inputs:
            x_MK[m, k] = self.x_MK[m, k]
        return self.with_x(x_MK)

    def rows(self, rows: Sequence[int]) -> Call:
        """These rows of x alone."""
        return self.with_x(self.x_MK[list(rows)].contiguous())

    def columns(self, columns: Sequence[int]) -> Call:
        """These columns of W alone."""
        n = list(columns)
        return replace(
            self, codes_KN=self.codes_KN[:, n].contiguous(), zeros_GN=self.zeros_GN[:, n].contiguous(),
            scales_GN=self.scales_GN[:, n].contiguous(),
        )  # fmt: skip

    def blocks(self, blocks: Sequence[int], block: int) -> Call:
        """These blocks of `block` rows of K alone; groups go along whole (one group stays one group)."""
        k = torch.cat([torch.arange(b * block, min((b + 1) * block, self.codes_KN.shape[0])) for b in blocks])
        groups = torch.unique_consecutive(self.groups_of_rows[k]) if self.scales_GN.shape[0] > 1 else torch.tensor([0])
        return replace(
            self, x_MK=self.x_MK[:, k].contiguous(), codes_KN=self.codes_KN[k], zeros_GN=self.zeros_GN[groups],
            scales_GN=self.scales_GN[groups], group_size=min(self.group_size, len(k)),
        )  # fmt: skip

    def short_groups(self) -> Call:
        """Groups of more than BLOCK rows cut into groups of BLOCK with the same scale, where there are several."""
        parts, rest = divmod(self.group_size, BLOCK)
        if rest or parts < 2 or self.scales_GN.shape[0] == 1:
            return self
        zeros_GN, scales_GN = (t.repeat_interleave(parts, dim=0) for t in (self.zeros_GN, self.scales_GN))
        return replace(self, zeros_GN=zeros_GN, scales_GN=scales_GN, group_size=BLOCK)

    def muted(self, rows: torch.Tensor, columns: torch.Tensor) -> Call:
        """Codes of these rows of K (bool [K]) and columns (bool [N]) set to the zero point, where it is a code."""
        zero_KN = self.zeros_GN[self.groups_of_rows].clamp(0, 2**self.bits - 1)
        return replace(self, codes_KN=torch.where(rows[:, None] | columns, zero_KN, self.codes_KN))


def call_of(x_MK: torch.Tensor, linear: PackedLinear, first: int = 0) -> Call:
    """A captured input and a checkpoint's linear; with desc_act the rows of K are put in the order of their groups.

    first: row of W that the first column of x belongs to; x of a tensor-parallel rank has fewer columns than W rows.

    That order is the one in which exllama's kernels take them, so the call fails as it did unless g_idx is the cause.
    """
    spec = linear.spec
    codes_KN = unpack_rows(linear.qweight, spec.bits, spec.in_features).to(torch.int16)
    x_MK = torch.nn.functional.pad(x_MK.to(torch.float16), (first, spec.in_features - first - x_MK.shape[1]))
    if linear.g_idx is not None and spec.desc_act:
        order_K = torch.argsort(group_of_row(linear), stable=True)
        codes_KN, x_MK = codes_KN[order_K], x_MK[:, order_K]
    return Call(
        x_MK.contiguous(), codes_KN, unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format),
        linear.scales.to(torch.float16), spec.bits, spec.group_size, spec.format,
    )  # fmt: skip


def differs(a: PackedLinear, b: PackedLinear) -> bool:
    """Whether two checkpoints hold other tensors for one linear."""
    if a is b:
        return False
    return any(
        (x is None) is not (y is None) or (x is not None and y is not None and not torch.equal(x, y))
        for x, y in ((a.qweight, b.qweight), (a.qzeros, b.qzeros), (a.scales, b.scales), (a.g_idx, b.g_idx))
    )


def packed(call: Call, name: str = "reduced") -> PackedLinear:
    """The call's weight as a checkpoint would hold it."""
    _, k, n = call.shape
    symmetric = bool((call.zeros_GN == 2 ** (call.bits - 1)).all())
    spec = LayerSpec(
        name, k, n, call.bits, call.group_size, sym=symmetric, desc_act=False, format=call.format, has_bias=False
    )
    qzeros = pack_zeros(call.zeros_GN, call.bits, call.format)
    return PackedLinear(spec, pack_rows(call.codes_KN, call.bits), qzeros, call.scales_GN, None, None)


def weight_of(linear: PackedLinear) -> Weight:
    """The exact weight, as the judge takes it."""
    from gptq_diff.checkpoint.dequant import dequantise
    from gptq_diff.compare.judge import Weight

    bad_N = ~torch.isfinite(linear.scales.float()).all(dim=0)
    return Weight(linear.spec, dequantise(linear, torch.float32), bad_N, bad_N, linear)
