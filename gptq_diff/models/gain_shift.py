"""The gain shift: a change of a checkpoint that exact arithmetic cannot see and fp16 accumulators can.

down_proj's input is silu(gate) * up. Multiplying the columns of up_proj that feed one group of down_proj's rows by G
and dividing that group's row of down_proj.scales by G leaves W_down @ x as it was and makes those activations G times
larger. With G a power of two and every scale a normal float16 before and after, each product changes its exponent
alone, so the model is the same number for number. Kernels that sum unscaled products in fp16 see sums G times larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gptq_diff.errors import UsageError
from gptq_diff.models.options import GainShift

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class ShiftedScales:
    """What a gain shift changes, in the dtypes it came in.

    up_scales: up_proj.scales [G_up, I].
    up_bias: up_proj.bias [I], or None.
    down_scales: down_proj.scales [G_down, H].
    """

    up_scales: torch.Tensor
    up_bias: torch.Tensor | None
    down_scales: torch.Tensor


def apply_gain_shift(
    up_scales: torch.Tensor,
    up_bias: torch.Tensor | None,
    down_scales: torch.Tensor,
    down_g_idx: torch.Tensor,
    shift: GainShift,
) -> ShiftedScales:
    """Move `shift.gain` from group `shift.group` of down_proj into up_proj; the inputs are left alone.

    up_scales: [G_up, I]; up_bias: [I] or None; down_scales: [G_down, H]; down_g_idx: [I], the group of every channel
    (k // group_size without desc_act). Raises UsageError where the group does not exist or any product would overflow,
    become subnormal or otherwise be inexact in the tensors' own dtype.
    """
    groups = down_scales.shape[0]
    if not 0 <= shift.group < groups:
        raise UsageError(f"gain shift {shift}: down_proj has groups 0 to {groups - 1} only")
    channels = down_g_idx == shift.group
    up = up_scales.clone()
    up[:, channels] = _times(up_scales[:, channels], shift.gain, "up_proj.scales", shift)
    down = down_scales.clone()
    down[shift.group] = _times(down_scales[shift.group], 1 / shift.gain, "down_proj.scales", shift)
    bias = up_bias
    if up_bias is not None:
        bias = up_bias.clone()
        bias[channels] = _times(up_bias[channels], shift.gain, "up_proj.bias", shift)
    return ShiftedScales(up, bias, down)


def shift_linears(up: PackedLinear, down: PackedLinear, shift: GainShift) -> tuple[PackedLinear, PackedLinear]:
    """Apply the gain shift to one block's packed up_proj and down_proj."""
    rows = torch.arange(down.spec.in_features)
    g_idx = rows // down.spec.group_size if down.g_idx is None else down.g_idx
    shifted = apply_gain_shift(up.scales, up.bias, down.scales, g_idx, shift)
    return replace(up, scales=shifted.up_scales, bias=shifted.up_bias), replace(down, scales=shifted.down_scales)


def exact_product(values: torch.Tensor, factor: float) -> tuple[torch.Tensor, int]:
    """The product in the dtype of `values`, and how many are not exact, or not normal though not zero."""
    exact = values.double() * factor
    product = exact.to(values.dtype)
    subnormal = (exact != 0) & (exact.abs() < torch.finfo(values.dtype).smallest_normal)
    return product, int(((product.double() != exact) | subnormal).sum())


def _times(values: torch.Tensor, factor: float, what: str, shift: GainShift) -> torch.Tensor:
    """The product in the dtype of `values`; refused unless it is exact and normal wherever it is not zero."""
    product, count = exact_product(values, factor)
    if count:
        raise UsageError(
            f"gain shift {shift}: {count} of {values.numel()} values of {what} would overflow, become subnormal or be "
            f"rounded when multiplied by {factor:g}, and the model would no longer be the same",
            hint="choose a gain nearer to 1, or another group",
        )
    return product
