"""Headroom measured on a kernel itself: its sums are doubled until it breaks, its exact answer staying what it is.

- **Gain shift**, for sums before the scale: the group of x that holds the largest one is multiplied by 2^k and that
  group's scales by 2^-k. Exact, and refused where a scale would be rounded, overflow or become subnormal. As far as the
  result has room for it all scales are multiplied by a power of two first, which no sum before the scale notices.
- **Scaled input**, for kernels that scale first: x is multiplied by 2^k, and the answer grows with it.

A kernel stands a doubling as long as the judge's rule (gptq_diff.compare.judge) finds its result right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from gptq_diff.checkpoint.dequant import dequantise, group_of_row
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.compare.judge import CapturedCall, Weight, judge_layer
from gptq_diff.diagnose.headroom.arithmetics import BLOCK, LANE, RESULT, UNSCALED, arithmetics_of
from gptq_diff.diagnose.headroom.measure import measure
from gptq_diff.diagnose.headroom.nearest import Nearest
from gptq_diff.diagnose.headroom.share import share_of
from gptq_diff.kernels.base import Kernel

MOST = 24
"""Doublings, up or down, after which a kernel counts as not to be broken."""
GAIN_SHIFT, SCALED_INPUT = "gain shift", "scaled input"


@dataclass(frozen=True)
class Stood:
    """How many doublings a kernel stands, beside what was computed.

    path: the arithmetic that ran. how: GAIN_SHIFT or SCALED_INPUT. arithmetic: the sum that grows, with its `bits`.
    row, column, channel, activation, weight: as in Nearest. group: whose scales were divided; None for SCALED_INPUT.
    doublings: the last that it stood; negative where the input as it is was too much already.
    broke: whether the next one broke it; else no further one could be made. ended: what happened at the next one.
    """

    path: str
    how: str
    arithmetic: str
    bits: float
    row: int
    column: int
    channel: int
    activation: float
    weight: float
    group: int | None
    doublings: int
    broke: bool
    ended: str

    @property
    def computed(self) -> int:
        """Doublings that the headroom allows."""
        return math.floor(self.bits)


def stress(kernel: Kernel, linear: PackedLinear, x_MK: torch.Tensor) -> Stood | None:
    """Double until the kernel breaks; None where all sums are zero.

    x_MK: float16 [M, K], finite; M decides the path where a kernel has several. kernel: makes its weight anew for every
    linear that is handed to it under another name.
    """
    path = kernel.multiply(x_MK, linear).path
    sums = measure(x_MK, share_of(linear), arithmetics_of(path, linear.spec))
    grown = {name: near for name, near in sums.items() if name in (LANE, UNSCALED)} or sums
    if not grown:
        return None
    name, near = min(grown.items(), key=lambda item: item[1].bits)
    group = int(group_of_row(linear)[near.channel]) if name in (LANE, UNSCALED) else None
    after = [sums[held].bits for held in (BLOCK, RESULT) if held in sums]
    trial = _Trial(kernel, linear, x_MK, group, max(0, math.floor(min(after, default=0)) - 1))
    doublings, broke, ended = _search(trial)
    return Stood(
        path, SCALED_INPUT if group is None else GAIN_SHIFT, name, near.bits, near.row, near.column, near.channel,
        near.activation, near.weight, group, doublings, broke, ended,
    )  # fmt: skip


def nearest_sum(x_MK: torch.Tensor, linear: PackedLinear, path: str) -> Nearest | None:
    """The sum that `stress` would let grow on that path: one before the scale where the path has any."""
    sums = measure(x_MK, share_of(linear), arithmetics_of(path, linear.spec))
    grown = [near for name, near in sums.items() if name in (LANE, UNSCALED)] or list(sums.values())
    return min(grown, key=lambda near: near.bits, default=None)


@dataclass(frozen=True)
class _Outcome:
    """Of one power: whether it could be made, whether the kernel's result is right, and in words what happened."""

    made: bool
    right: bool
    words: str


@dataclass(frozen=True)
class _Trial:
    """One kernel, one linear, one input; group None scales the whole input. room: doublings that the result stands."""

    kernel: Kernel
    linear: PackedLinear
    x_MK: torch.Tensor
    group: int | None
    room: int

    def at(self, power: int) -> _Outcome:
        """Multiply with the sums 2^power times as large and judge."""
        x_MK, linear, reason = self._grown(power)
        if reason:
            return _Outcome(made=False, right=False, words=reason)
        y_MN = self.kernel.multiply(x_MK, linear)
        none_N = torch.zeros(linear.spec.out_features, dtype=torch.bool)
        weight = Weight(linear.spec, dequantise(linear), none_N, none_N, linear)
        call = CapturedCall(0, 0, y_MN.path, x_MK.cpu(), y_MN.y_MN.cpu(), None)
        judged = judge_layer(weight, [call])[0]
        words = f"{judged.kind}: {judged.nonfinite} of {judged.elements} not finite"
        if judged.kind == "diverged":
            words = f"diverged: error {judged.local_l2_rel:.2g} where rounding explains {judged.noise_floor:.2g}"
        return _Outcome(made=True, right=judged.kind == "ok", words=words)

    def _grown(self, power: int) -> tuple[torch.Tensor, PackedLinear, str]:
        gain = 2.0**power
        spec = replace(self.linear.spec, name=f"{self.linear.spec.name} x 2^{power}")
        x_MK, scales_GN, reason = self.x_MK.clone(), self.linear.scales, ""
        if self.group is None:
            x_MK *= gain
        else:
            x_MK[:, group_of_row(self.linear) == self.group] *= gain
            scales_GN, reason = self._shifted(gain)
        if not bool(torch.isfinite(x_MK).all()):
            reason = "the input itself would leave float16"
        return x_MK, replace(self.linear, spec=spec, scales=scales_GN), reason

    def _shifted(self, gain: float) -> tuple[torch.Tensor, str]:
        """Scales with the group's divided, all lifted by as little as makes that exact; else the reason why not."""
        scales_GN = self.linear.scales
        smallest = torch.finfo(scales_GN.dtype).smallest_normal
        for lift in range(self.room + 1):
            exact_GN = scales_GN.double() * 2.0**lift
            exact_GN[self.group] /= gain
            shifted_GN = exact_GN.to(scales_GN.dtype)
            lost_GN = (shifted_GN.double() != exact_GN) | ((exact_GN != 0) & (exact_GN.abs() < smallest))
            if not bool(lost_GN.any()):
                return shifted_GN, ""
        return scales_GN, f"{int(lost_GN.sum())} scales would be rounded or subnormal"


def _search(trial: _Trial) -> tuple[int, bool, str]:
    """(the last doubling that stood, whether the next broke the kernel, what happened there)."""
    outcome = trial.at(0)
    if outcome.right:
        for power in range(1, MOST + 1):
            outcome = trial.at(power)
            if not outcome.right:
                return power - 1, outcome.made, outcome.words
        return MOST, False, "not broken"
    words = outcome.words
    for power in range(-1, -MOST - 1, -1):
        outcome = trial.at(power)
        if outcome.right or not outcome.made:
            return (power, True, words) if outcome.right else (power + 1, False, outcome.words)
        words = outcome.words
    return -MOST, True, words
