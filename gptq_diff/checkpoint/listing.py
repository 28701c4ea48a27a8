"""From tensor names and shapes to the list of quantised linears; no tensor data is read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gptq_diff.checkpoint.config import QuantConfig
from gptq_diff.checkpoint.header import TensorEntry
from gptq_diff.checkpoint.module_quant import LayerQuant
from gptq_diff.errors import CheckpointError
from gptq_diff.records import LayerSpec, SkippedLayer

_EXPERT = re.compile(r"(^|\.)experts(\.|$)")
_ATTENTION = (("q_proj", "k_proj", "v_proj"), (), ("o_proj", "out_proj", "dense", "c_proj"))
_MLP = (("gate_proj", "w1"), ("up_proj", "w3"), (), ("down_proj", "w2", "fc2", "dense_4h_to_h", "c_proj"))


def list_layers(
    tensors: Mapping[str, TensorEntry], quant: QuantConfig
) -> tuple[tuple[LayerSpec, ...], tuple[SkippedLayer, ...]]:
    """Every quantised linear in natural order: block by block, q, k, v, o, gate, up, down, what has no block last."""
    names = sorted((name[: -len(".qweight")] for name in tensors if name.endswith(".qweight")), key=natural_key)
    if not names:
        raise CheckpointError(
            f"no tensor of the checkpoint is called *.qweight although {quant.source} speaks of GPTQ; "
            "give the quantised weights, not the original ones"
        )
    skipped = tuple(
        SkippedLayer(name, "MoE expert: engines run all experts of a block in one fused kernel, which is not compared")
        for name in names
        if _EXPERT.search(name)
    )
    return tuple(_layer(name, tensors, quant) for name in names if not _EXPERT.search(name)), skipped


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key of a module's path: block number first within its stack, then the order of execution in a block."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    if not numbers:
        return (1, name)
    at = numbers[0]
    attention = "attn" in name or "attention" in name
    rank = _rank(parts[-1], _ATTENTION if attention else _MLP)
    return (0, ".".join(parts[:at]), int(parts[at]), not attention, rank, name)


def _rank(leaf: str, steps: tuple[tuple[str, ...], ...]) -> tuple[int, int]:
    """The step of a half block that the leaf belongs to; the empty step stands for every other name."""
    for step, leaves in enumerate(steps):
        if leaf in leaves:
            return step, leaves.index(leaf)
    return steps.index(()), 0


def _layer(name: str, tensors: Mapping[str, TensorEntry], quant: QuantConfig) -> LayerSpec:
    settings = quant.for_module(name)
    if settings is None:
        raise CheckpointError(
            f"{quant.source} excludes {name} from quantisation (a '-:' key of 'dynamic'), yet the checkpoint stores it "
            "packed; correct the key, or engines will not find its weight"
        )
    for suffix in ("scales", "qzeros"):
        if f"{name}.{suffix}" not in tensors:
            raise CheckpointError(f"{name} has a qweight and no {suffix}; fetch the checkpoint again")
    _check_dtypes(name, tensors)
    return _fit(name, tensors, settings, quant)


def _check_dtypes(name: str, tensors: Mapping[str, TensorEntry]) -> None:
    wanted = {"qweight": ("I32",), "qzeros": ("I32",), "scales": ("F16", "BF16"), "g_idx": ("I32",)}
    for suffix, dtypes in wanted.items():
        entry = tensors.get(f"{name}.{suffix}")
        if entry is not None and entry.dtype not in dtypes:
            raise CheckpointError(
                f"{name}.{suffix} is stored as {entry.dtype}, and GPTQ engines read {' or '.join(dtypes)}; "
                "convert the checkpoint"
            )


def _fit(name: str, tensors: Mapping[str, TensorEntry], settings: LayerQuant, quant: QuantConfig) -> LayerSpec:
    qweight = tensors[f"{name}.qweight"].shape
    bias, g_idx = tensors.get(f"{name}.bias"), tensors.get(f"{name}.g_idx")
    bits = settings.bits
    if len(qweight) != 2 or 0 in qweight:
        raise CheckpointError(
            f"{name}.qweight has shape {list(qweight)}, and a packed linear has two, neither of them 0"
        )
    words, n = qweight
    k = words * 32 // bits
    group_size = k if settings.group_size == -1 else settings.group_size
    groups = -(-k // group_size)
    if words * 32 % bits or (bits == 3 and k % 32) or n * bits % 32:
        raise CheckpointError(
            f"{name} has qweight {list(qweight)}, and {bits}-bit codes do not fill those words without padding, which "
            f"engines lay out in different ways; check bits in {quant.source}"
        )
    expected = {"qzeros": (groups, n * bits // 32), "scales": (groups, n)}
    for suffix, shape in expected.items():
        stored = tensors[f"{name}.{suffix}"].shape
        if stored != shape:
            raise CheckpointError(
                f"{name}.{suffix} has shape {list(stored)} where {list(shape)} follows from qweight {list(qweight)}, "
                f"{bits} bits and group_size {settings.group_size}; check those values in {quant.source}"
            )
    for suffix, entry, length in (("bias", bias, n), ("g_idx", g_idx, k)):
        if entry is not None and entry.shape != (length,):
            raise CheckpointError(f"{name}.{suffix} has shape {list(entry.shape)} where [{length}] is expected")
    if settings.desc_act and g_idx is None and groups > 1:
        raise CheckpointError(f"{quant.source} says desc_act, and {name} has no g_idx to give each row its group")
    return LayerSpec(
        name, k, n, bits, group_size, settings.sym, settings.desc_act, quant.format, has_bias=bias is not None
    )
