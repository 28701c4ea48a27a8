"""What a product is made of, in pieces that a hypothesis can exchange: codes, zero points, scales, groups, inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packing import unpack_rows, unpack_zeros

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.records import LayerSpec


@dataclass(frozen=True)
class Parts:
    """The pieces of y = x W for some columns C of a linear; W[k, c] = (code - zero[g(k), c]) * scale[g(k), c].

    x_MK: float32 [M, K]. codes_KC: int16 [K, C]. zeros_GC: int16 [G, C]. scales_GC: float32 [G, C].
    group_K: int64 [K], the group of every row. bits: of the codes. dense: every row is a group of its own and all codes
    are one, since rows were exchanged that no codes, zero points and scales could express.
    """

    x_MK: torch.Tensor
    codes_KC: torch.Tensor
    zeros_GC: torch.Tensor
    scales_GC: torch.Tensor
    group_K: torch.Tensor
    bits: int
    dense: bool = False

    def weight(self) -> torch.Tensor:
        """W, float32 [K, C]; columns whose scales are NaN or infinite hold what IEEE arithmetic makes of them."""
        return (self.codes_KC - self.zeros_GC[self.group_K]).float() * self.scales_GC[self.group_K]

    def with_(self, **pieces: torch.Tensor) -> Parts:
        """The same with some pieces exchanged."""
        return replace(self, **pieces)  # type: ignore[arg-type]

    def as_dense(self) -> Parts:
        """The same weight, dense."""
        if self.dense:
            return self
        ones = torch.ones_like(self.codes_KC)
        return replace(
            self, codes_KC=ones, zeros_GC=torch.zeros_like(ones), scales_GC=self.weight(),
            group_K=torch.arange(len(ones)), dense=True,
        )  # fmt: skip


class Unpacked:
    """One linear, unpacked when it is first asked for."""

    def __init__(self, linear: PackedLinear) -> None:
        self.linear = linear
        self.spec: LayerSpec = linear.spec
        self.group_K = group_of_row(linear)

    @cached_property
    def codes(self) -> torch.Tensor:
        """Codes as stored, int16 [K, N]."""
        return unpack_rows(self.linear.qweight, self.spec.bits, self.spec.in_features).to(torch.int16)

    @cached_property
    def zeros(self) -> torch.Tensor:
        """True zero points, int16 [G, N]."""
        return unpack_zeros(self.linear.qzeros, self.spec.bits, self.spec.out_features, self.spec.format)

    @cached_property
    def scales(self) -> torch.Tensor:
        """Scales, float32 [G, N]."""
        return self.linear.scales.float()


@dataclass(frozen=True)
class Source:
    """The linear that a call belongs to, and those that engines fuse with it, in the fused order.

    fused: for q, k, v or gate, up all of them, this one included; else this one alone. at: its place among them.
    """

    fused: Sequence[Unpacked]
    at: int

    @property
    def own(self) -> Unpacked:
        """The linear itself."""
        return self.fused[self.at]

    @property
    def spec(self) -> LayerSpec:
        """Its record."""
        return self.own.spec

    @property
    def first_column(self) -> int:
        """Its first column in the fused product."""
        return sum(u.spec.out_features for u in self.fused[: self.at])

    def parts(self, x_MK: torch.Tensor, columns: torch.Tensor) -> Parts:
        """The pieces of these columns (int64 [C]) as the checkpoint has them."""
        own = self.own
        return Parts(
            x_MK, own.codes[:, columns], own.zeros[:, columns], own.scales[:, columns], own.group_K,
            own.spec.bits,
        )  # fmt: skip

    def fused_parts(self, parts: Parts, columns: torch.Tensor) -> Parts | None:
        """The pieces of these columns of the fused product; None where the linears' groups differ."""
        if any(not torch.equal(u.group_K, self.own.group_K) or u.spec.bits != parts.bits for u in self.fused):
            return None
        codes, zeros, scales = (
            torch.cat([getattr(u, name) for u in self.fused], dim=1)[:, columns]
            for name in ("codes", "zeros", "scales")
        )
        return parts.with_(codes_KC=codes, zeros_GC=zeros, scales_GC=scales)
