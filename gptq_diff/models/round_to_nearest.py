"""Round-to-nearest quantisation of one weight: the plainest way to a GPTQ checkpoint, with no calibration data."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros
from gptq_diff.models.options import QuantFormat
from gptq_diff.models.packed_tensors import group_index, layer_spec


def quantise_linear(name: str, w_NK: torch.Tensor, quant: QuantFormat, *, seed: int) -> PackedLinear:
    """Quantise the weight of a linear, float32 [N, K] as torch.nn.Linear keeps it.

    Symmetric: scale = max|w| of the group / (2^bits - 1) * 2, zero = 2^(bits - 1). Asymmetric: scale = (max - min, the
    range widened to hold 0) / (2^bits - 1), zero = round(-min / scale), at least 1 because v1 cannot store 0.
    Scales are rounded to float16 first; code = round(w / scale) + zero, kept within 0 to 2^bits - 1.
    """
    n, k = w_NK.shape
    spec = layer_spec(name, k, n, quant, bias=False)
    g_idx = group_index(spec, seed)
    w_KN = w_NK.T.contiguous()
    low_GN, high_GN = _group_range(w_KN, g_idx.long(), spec.groups)
    levels = 2**spec.bits - 1
    if spec.sym:
        scales_GN = (torch.maximum(-low_GN, high_GN) / (levels / 2)).half()
        zeros_GN = torch.full_like(low_GN, 2 ** (spec.bits - 1))
    else:
        scales_GN = ((high_GN - low_GN) / levels).half()
        zeros_GN = torch.round(-low_GN / _divisor(scales_GN)).clamp(1, levels)
    rows = g_idx.long()
    codes_KN = torch.round(w_KN / _divisor(scales_GN)[rows]).add_(zeros_GN[rows]).clamp_(0, levels).to(torch.uint8)
    return PackedLinear(
        spec=spec,
        qweight=pack_rows(codes_KN, spec.bits),
        qzeros=pack_zeros(zeros_GN.to(torch.int16), spec.bits, spec.format),
        scales=scales_GN,
        g_idx=g_idx,
        bias=None,
    )


def _group_range(w_KN: torch.Tensor, rows: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest weight of every group and column, 0 included: float32 [G, N] each."""
    start = torch.zeros((groups, w_KN.shape[1]))
    index = rows[:, None].expand_as(w_KN)
    return start.scatter_reduce(0, index, w_KN, "amin"), start.scatter_reduce(0, index, w_KN, "amax")


def _divisor(scales_GN: torch.Tensor) -> torch.Tensor:
    """The scales in float32, 1 in place of 0 (a group of zeros keeps scale 0 and its zero point as every code)."""
    scales = scales_GN.float()
    return torch.where(scales == 0, torch.ones_like(scales), scales)
