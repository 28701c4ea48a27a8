"""The exact product against what it cannot do without: dequantising the weight. All linears, 37 rows."""

from __future__ import annotations

import torch

from benchmarks import smollm2
from benchmarks.figure import Figure, median, ratio, side_by_side
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.records import LayerSpec

ROWS = 37
LARGE = (27648, 5120)
"""K, N of Qwen2.5-32B's down_proj."""


def figures() -> list[Figure]:
    """For SmolLM2's 210 linears, and for one linear of a 32B model."""
    with open_checkpoint(smollm2.model()) as checkpoint:
        small = [checkpoint.packed(spec.name) for spec in checkpoint.layers]
        found = _figures("SmolLM2", small)
    return found + _figures("one 27648 x 5120 linear", [_large()])


def _figures(name: str, linears: list[PackedLinear]) -> list[Figure]:
    sizes = [linear.spec.in_features * linear.spec.out_features for linear in linears]
    buffer = torch.empty(max(sizes), dtype=torch.float32)
    x_MK = {k: torch.randn(ROWS, k) for k in {linear.spec.in_features for linear in linears}}
    weights = [dequantise(linear) for linear in linears]
    kernel = ExactKernel(cache_bytes=0)
    times = side_by_side({
        "dequantise": lambda: [dequantise(linear, out=buffer) for linear in linears],
        "product": lambda: [x_MK[w.shape[0]] @ w for w in weights],
        "both": lambda: [kernel.multiply(x_MK[linear.spec.in_features], linear) for linear in linears],
    })  # fmt: skip
    macs, seconds = ROWS * sum(sizes), {variant: median(values) for variant, values in times.items()}
    parts = f"dequantise alone {seconds['dequantise'] * 1e3:.0f} ms, multiply alone {seconds['product'] * 1e3:.0f} ms"
    return [
        Figure(f"exact kernel, {name}, M={ROWS}", macs / seconds["both"] / 1e9, "G multiply-adds/s", note=parts),
        Figure(f"  time, of dequantising alone, {name}", ratio(times, "both", "dequantise"), "times"),
        Figure(f"  dequantising alone, {name}", sum(sizes) / seconds["dequantise"] / 1e9, "G weights/s"),
    ]


def _large() -> PackedLinear:
    k, n = LARGE
    spec = LayerSpec(
        name="large", in_features=k, out_features=n, bits=4, group_size=128, sym=True, desc_act=False,
        format="gptq", has_bias=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    qweight = torch.randint(-(2**31), 2**31, (k // 8, n), dtype=torch.int32, generator=generator)
    qzeros = torch.full((k // 128, n // 8), 0x77777777, dtype=torch.int32)
    scales = (torch.rand(k // 128, n, generator=generator) * 0.01).to(torch.float16)
    return PackedLinear(spec, qweight, qzeros, scales, None, None)
