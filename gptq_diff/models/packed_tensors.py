"""The tensors of one packed linear, by name, as they are planned and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from gptq_diff.models.options import QuantFormat
from gptq_diff.models.random_bits import random_words
from gptq_diff.models.tensor_file import TensorData, TensorPlan
from gptq_diff.records import LayerSpec

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

_SHARED = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})  # the other two linears read their own


def layer_spec(name: str, in_features: int, out_features: int, quant: QuantFormat, *, bias: bool) -> LayerSpec:
    """The record of one linear of a model that is quantised by `quant` throughout."""
    return LayerSpec(
        name=name,
        in_features=in_features,
        out_features=out_features,
        bits=quant.bits,
        group_size=quant.rows_per_group(in_features),
        sym=quant.sym,
        desc_act=quant.desc_act,
        format=quant.checkpoint_format,
        has_bias=bias,
    )


def linear_plans(spec: LayerSpec) -> list[TensorPlan]:
    """The tensors of a packed linear in the order in which they are written; g_idx always, as AutoGPTQ writes it."""
    k, n, g = spec.in_features, spec.out_features, spec.groups
    plans = [
        TensorPlan(f"{spec.name}.qweight", "I32", (k * spec.bits // 32, n)),
        TensorPlan(f"{spec.name}.qzeros", "I32", (g, n * spec.bits // 32)),
        TensorPlan(f"{spec.name}.scales", "F16", (g, n)),
        TensorPlan(f"{spec.name}.g_idx", "I32", (k,)),
    ]
    return plans + ([TensorPlan(f"{spec.name}.bias", "F16", (n,))] if spec.has_bias else [])


def linear_data(linear: PackedLinear) -> Iterator[TensorData]:
    """The data for `linear_plans(linear.spec)`."""
    named = [("qweight", linear.qweight), ("qzeros", linear.qzeros), ("scales", linear.scales), ("g_idx", linear.g_idx)]
    for part, tensor in [*named, ("bias", linear.bias)]:
        if tensor is not None:
            yield tensor_data(f"{linear.spec.name}.{part}", tensor)


def tensor_data(name: str, tensor: torch.Tensor) -> TensorData:
    """A whole tensor as one piece."""
    return TensorData(name, [tensor.contiguous().numpy()])


def group_index(spec: LayerSpec, seed: int) -> torch.Tensor:
    """g_idx, int32 [K]: k // group_size, or under desc_act that order over a seeded permutation of the channels.

    Linears that share an input (q, k, v; gate, up) get the same one: GPTQ orders channels by the input's Hessian, and
    engines that fuse such linears keep one g_idx for them.
    """
    g_idx = torch.arange(spec.in_features, dtype=torch.int32) // spec.group_size
    if not spec.desc_act:
        return g_idx
    words = random_words(seed, f"{_input_of(spec.name)}.g_idx", spec.in_features)
    permuted = torch.empty_like(g_idx)
    permuted[torch.from_numpy(np.argsort(words, kind="stable"))] = g_idx
    return permuted


def _input_of(linear: str) -> str:
    """A name for the activation that a linear reads: the same for linears that read the same one."""
    parent, _, part = linear.rpartition(".")
    return f"{parent}.input" if part in _SHARED else linear
