"""The sharper noise figures, for every path that has one; asked only where the closed form fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import group_of_row, unscaled_codes
from gptq_diff.checkpoint.packing import unpack_zeros
from gptq_diff.numerics.floors import BLOCK_K, MMA_K, SINGLE_RMS
from gptq_diff.numerics.orders import SingleSums
from gptq_diff.numerics.partial_sums import Rounding, half_variance, own_rounding, running_sums2

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


SUSPECT = 1.0
"""Share of the threshold, by the closed form, from which the sharper figure is asked for. It costs a simulation, so it
is not asked for more often than a verdict needs it."""


def rounding(
    path: str, x_MK: torch.Tensor, w_KN: torch.Tensor, linear: PackedLinear | None, columns: torch.Tensor
) -> Rounding | SingleSums | None:
    """What rounding is expected to do to these rows and columns; None where only the closed form is known.

    x_MK, w_KN: float32, finite, w_KN of these columns only. linear: the whole packed weight, which the fast path's
    own sums are simulated from. columns: int64 [C].
    """
    if path == "exact":
        return SingleSums(x_MK, w_KN)
    if path == "exllama-fast" and linear is not None:
        return fast_path_rounding(x_MK, w_KN, linear, columns)
    if path == "gptqmodel-int4pack" and linear is not None:
        return int4pack_rounding(x_MK, w_KN, linear, columns)
    return own_rounding(path, x_MK, w_KN)


def fast_path_rounding(
    x_MK: torch.Tensor, w_KC: torch.Tensor, linear: PackedLinear, columns: torch.Tensor
) -> Rounding | None:
    """Expected rounding of the simulated partial sums; None for what the kernel cannot take.

    The GPU adds its blocks in no fixed order: what their additions round is counted as it is on average over all
    orders, and once more as it is in ascending order, which is near to how blocks are started.
    Outputs whose partial sums overflow have no expected error and count as 0: they are judged as overflows.
    """
    from gptq_diff.kernels.fastpath import fast_path_spread, refusal  # numba is loaded only where it is needed

    spec = linear.spec
    if refusal(spec.bits, spec.in_features, spec.group_size):
        return None
    codes_KC, scales_GC, x_MK = unscaled_codes(linear)[:, columns], linear.scales[:, columns], x_MK.to(torch.float16)
    if linear.g_idx is not None:  # the kernel's own order of rows is by group
        if not bool((torch.bincount(linear.g_idx, minlength=spec.groups) == spec.group_size).all()):
            return None
        order_K = torch.argsort(linear.g_idx, stable=True)
        codes_KC, w_KC, x_MK = codes_KC[order_K], w_KC[order_K], x_MK[:, order_K]
    half_GC = torch.nan_to_num(scales_GC.to(torch.float16), 0.0, 0.0, 0.0)
    group_size = min(spec.group_size, spec.in_features)
    x, codes, scales = (t.contiguous().cpu().numpy() for t in (x_MK, codes_KC, half_GC))  # the simulator's place
    _, rms_MC = fast_path_spread(x, codes, scales, group_size, spec.bits, "random")
    rms = torch.from_numpy(rms_MC).to(x_MK.device)
    variance = torch.where(torch.isfinite(rms), rms, 0.0).double().square()
    variance += running_sums2(x_MK.float(), w_KC, BLOCK_K, measure=half_variance)
    return Rounding(torch.zeros_like(variance), variance)


def int4pack_rounding(x_MK: torch.Tensor, w_KC: torch.Tensor, linear: PackedLinear, columns: torch.Tensor) -> Rounding:
    """What rounding every group's (8 - zero) * scale to float16 does, and the sums' and the result's own rounding."""
    spec = linear.spec
    zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
    offset_GC = ((8.0 - zeros_GN.float()) * linear.scales.float())[:, columns]
    lost_GC = torch.nan_to_num(offset_GC.to(torch.float16).float() - offset_GC, 0.0, 0.0, 0.0)
    x_MG = x_MK.new_zeros(len(x_MK), spec.groups).index_add_(1, group_of_row(linear), x_MK)
    variance = SINGLE_RMS**2 * MMA_K * running_sums2(x_MK, w_KC) + half_variance(x_MK @ w_KC)
    return Rounding((x_MG @ lost_GC).double().square_(), variance)
