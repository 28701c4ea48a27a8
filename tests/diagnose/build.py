"""Small linears with random codes, and their products by plain formulas that share nothing with the diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros
from gptq_diff.diagnose.explain import explain_call
from gptq_diff.diagnose.parts import Source, Unpacked
from gptq_diff.records import Finding, LayerSpec


@dataclass
class Made:
    """A packed linear and what it was made of: codes [K, N], zeros [G, N], scales [G, N], groups [K]."""

    linear: PackedLinear
    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    group: torch.Tensor

    def weight(self, **other: torch.Tensor) -> torch.Tensor:
        """(code - zero) * scale, with some pieces exchanged."""
        codes, zeros = other.get("codes", self.codes), other.get("zeros", self.zeros)
        scales, group = other.get("scales", self.scales), other.get("group", self.group)
        return (codes.float() - zeros[group].float()) * scales[group]


def make(
    name: str, columns: int, *, rows: int = 512, group_size: int = 64, bits: int = 4, sym: bool = True,
    desc_act: bool = False, seed: int = 0,
) -> Made:  # fmt: skip
    """A linear of random codes, scales from 0.005 to 0.025, and a bias."""
    g = torch.Generator().manual_seed(seed)
    groups = rows // group_size
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g, dtype=torch.uint8)
    zeros = torch.full((groups, columns), 2 ** (bits - 1))
    if not sym:
        zeros = torch.randint(1, 2**bits, (groups, columns), generator=g)
    scales = (torch.rand(groups, columns, generator=g) * 0.02 + 0.005).half()
    group = torch.arange(rows) // group_size
    if desc_act:
        group = group[torch.randperm(rows, generator=g)]
    spec = LayerSpec(name, rows, columns, bits, group_size, sym, desc_act, "gptq", True)
    bias = torch.randn(columns, generator=g).half()
    packed = PackedLinear(
        spec, pack_rows(codes, bits), pack_zeros(zeros, bits, "gptq"), scales, group.int() if desc_act else None, bias
    )
    return Made(packed, codes, zeros, scales.float(), group)


def inputs(rows: int, columns: int = 512, seed: int = 1) -> torch.Tensor:
    """float16 [rows, columns] with one massive activation in the first row."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0, 100] = 900.0
    return x.half()


def product(x_MK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """As the path "fp16": weights rounded to half, sums in float32, y rounded to half."""
    return (x_MK.float() @ w_KN.half().float()).half()


def explained(
    y_MN: torch.Tensor, x_MK: torch.Tensor, own: Made, fused: tuple[Made, ...] = (), path: str = "fp16"
) -> list[Finding]:
    """What the diagnosis says of that product."""
    all_ = fused or (own,)
    source = Source([Unpacked(m.linear) for m in all_], all_.index(own))
    return explain_call(source, path, x_MK, y_MN, dequantise(own.linear))
