"""A look at every quantised linear: what it is, and what about it is suspicious. Reads all packed tensors once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.stuck import pruned_groups, stuck_groups
from gptq_diff.checkpoint.zeros import ambiguous_zeros, off_centre_zeros
from gptq_diff.records import LayerSpec, ModelInfo, SkippedLayer

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class LayerInspection:
    """What was found in one linear; a group here is one column's share of it, so a layer has G * N of them.

    spec: the layer.
    scale_min, scale_max: over the finite scales; None when there is none.
    nan_scales, inf_scales, zero_scales, subnormal_scales, negative_scales: numbers of scales, of G * N.
    stuck_groups: groups whose codes are all one value, of G * N.
    pruned_groups: those of them whose weights are all zero, as pruned channels and padding have them; not suspicious.
    ambiguous_zeros: v1 zero points stored as 2^bits - 1, which engines read in two ways, of G * N.
    off_centre_zeros: zero points of a symmetric layer that are not 2^(bits - 1), of G * N; 0 for an asymmetric one.
    reordered_rows: True when g_idx puts rows into groups in another order than their own.
    nonfinite_bias: numbers of NaN and infinite values in bias; 0 without a bias.
    """

    spec: LayerSpec
    scale_min: float | None
    scale_max: float | None
    nan_scales: int
    inf_scales: int
    zero_scales: int
    subnormal_scales: int
    negative_scales: int
    stuck_groups: int
    pruned_groups: int
    ambiguous_zeros: int
    off_centre_zeros: int
    reordered_rows: bool
    nonfinite_bias: int

    @property
    def suspicions(self) -> tuple[str, ...]:
        """Everything odd about the layer, a few words each, the worst first; empty when nothing is."""
        total = self.spec.groups * self.spec.out_features
        counted = (
            (self.nan_scales, "NaN scales"),
            (self.inf_scales, "infinite scales"),
            (self.nonfinite_bias, "NaN or infinite biases"),
            (self.negative_scales, "negative scales"),
            (self.zero_scales, "zero scales"),
            (self.subnormal_scales, "subnormal scales"),
            (self.stuck_groups - self.pruned_groups, f"of {total} groups with all codes at one value"),
            (self.ambiguous_zeros, f"ambiguous zero points (stored {2**self.spec.bits - 1})"),
            (self.off_centre_zeros, f"zero points off {2 ** (self.spec.bits - 1)} though symmetric"),
        )
        found = [f"{number} {words}" for number, words in counted if number]
        if self.reordered_rows and not self.spec.desc_act:
            found.append("g_idx reorders rows though desc_act is false")
        return tuple(found)


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint as inspected.

    info: the checkpoint as a whole.
    layers: in natural order.
    skipped: quantised linears that gptq-diff leaves out, with the reason.
    notes: what is odd about the checkpoint's settings.
    """

    info: ModelInfo
    layers: tuple[LayerInspection, ...]
    skipped: tuple[SkippedLayer, ...]
    notes: tuple[str, ...]

    @property
    def suspicious(self) -> tuple[LayerInspection, ...]:
        """The layers with at least one suspicion."""
        return tuple(layer for layer in self.layers if layer.suspicions)


def inspect_checkpoint(ckpt: Checkpoint) -> InspectReport:
    """Look at every layer, one at a time; memory stays at a few times the largest packed layer."""
    layers = tuple(inspect_linear(ckpt.packed(spec.name)) for spec in ckpt.layers)
    return InspectReport(ckpt.info(), layers, ckpt.skipped, ckpt.notes())


def inspect_linear(linear: PackedLinear) -> LayerInspection:
    """Count what is odd in one linear."""
    scales = linear.scales
    finite = scales[scales.isfinite()]
    stuck_GN = stuck_groups(linear)
    smallest_normal = torch.finfo(scales.dtype).tiny
    return LayerInspection(
        spec=linear.spec,
        scale_min=float(finite.min()) if finite.numel() else None,
        scale_max=float(finite.max()) if finite.numel() else None,
        nan_scales=int(scales.isnan().sum()),
        inf_scales=int(scales.isinf().sum()),
        zero_scales=int((scales == 0).sum()),
        subnormal_scales=int(((finite != 0) & (finite.abs() < smallest_normal)).sum()),
        negative_scales=int((scales < 0).sum()),
        stuck_groups=int(stuck_GN.sum()),
        pruned_groups=int(pruned_groups(linear, stuck_GN).sum()),
        ambiguous_zeros=int(ambiguous_zeros(linear).sum()),
        off_centre_zeros=int(off_centre_zeros(linear).sum()) if linear.spec.sym else 0,
        reordered_rows=linear.g_idx is not None,
        nonfinite_bias=0 if linear.bias is None else int((~linear.bias.isfinite()).sum()),
    )
