"""What is known of a checkpoint and of the linears in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSpec:
    """One quantised linear of a checkpoint, known from headers and config alone (no tensor data read).

    name: Hugging Face path, for example `model.layers.11.mlp.down_proj`.
    in_features: K, rows of the dequantised weight W[K, N].
    out_features: N.
    bits: 2, 3, 4 or 8.
    group_size: rows of K that share a scale; K itself where the config says -1.
    sym: True when the config calls the quantisation symmetric.
    desc_act: True when g_idx reorders the rows into groups.
    format: "gptq" (v1: zero = stored + 1) or "gptq_v2" (zero = stored).
    has_bias: True when a bias[N] is stored beside the packed weight.
    """

    name: str
    in_features: int
    out_features: int
    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    format: str
    has_bias: bool

    @property
    def groups(self) -> int:
        """Rows of `scales`: ceil(K / group_size)."""
        return -(-self.in_features // self.group_size)


@dataclass(frozen=True)
class SkippedLayer:
    """A quantised linear that is left out, and why; shown in every report."""

    name: str
    reason: str


@dataclass(frozen=True)
class Support:
    """Whether a kernel or a backend can do something; `reason` says why not, and is empty when ok."""

    ok: bool
    reason: str = ""


ORIGINAL = "original"
"""Kernel mode and path of a linear that is not quantised: there is no kernel to judge."""
BOUNDED = "bounded"
"""Path of a simulator's call that was proved safe and not simulated (--simulate targeted): y is the exact answer."""
NOT_SIMULATED = "bounded, not simulated"
"""Why a linear that was only called so is not judged."""


@dataclass(frozen=True)
class ModelInfo:
    """What a report says of a checkpoint (docs/report.schema.json, `model`)."""

    path: str
    architecture: str
    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    format: str
    quantized_linears: int
    fingerprint: str


@dataclass(frozen=True)
class OriginalInfo:
    """What a report says of the unquantised model (--original)."""

    path: str
    architecture: str
    fingerprint: str
