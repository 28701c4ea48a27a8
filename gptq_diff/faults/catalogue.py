"""Every kind that is planted, and those that cannot be."""

from __future__ import annotations

from collections.abc import Callable

from gptq_diff.faults import (
    accumulator_overflow,
    all_reduce,
    ambiguous_zero,
    bias,
    cancelling,
    clamp,
    dtype,
    g_idx_ignored,
    nan_input,
    nan_weights,
    nibble_order,
    outside,
    race,
    result_overflow,
    row_path,
    scale_group,
    shard_order,
    unknown,
    zero_point_shift,
)
from gptq_diff.faults.fault import Fault, Site

_MODULES = (
    accumulator_overflow, all_reduce, ambiguous_zero, bias, clamp, dtype, g_idx_ignored, nan_input, nan_weights,
    nibble_order, outside, race, result_overflow, row_path, scale_group, shard_order, unknown, zero_point_shift,
)  # fmt: skip

KINDS: dict[str, Callable[[Site], Fault]] = {module.KIND: module.plant for module in _MODULES}


def planter(kind: str, path: str) -> Callable[[Site], Fault]:
    """What plants that kind for that arithmetic: the reconstruct path's accumulators overflow in a way of their own."""
    return cancelling.plant if kind == cancelling.KIND and path == "exllama-reconstruct" else KINDS[kind]


NOT_PLANTED = {
    "split-k-noise": "by contract no fault: repeats that differ by no more than rounding explains. Healthy runs have "
    "it (a kernel that adds its slices of K in another order each time), and it must raise no alarm",
}
"""Kind -> why it is not planted."""
PREPARES = frozenset({"ambiguous-zero", "g-idx-ignored"})
"""Kinds that, planted in an engine, need something in the sound checkpoint as well."""
NOT_ON_REAL = {
    "accumulator-overflow": "no kernel that they have for a CPU accumulates in half",
    "all-reduce": "it takes ranks; two of them are played in the transformers engine instead",
    "zero-point-shift": "vLLM's kernel for a CPU takes symmetric checkpoints and reads no zero point (the others do)",
    "ambiguous-zero": "the same of vLLM; GPTQModel and auto_gptq read such zero points as 0 by themselves, so there "
    "the sound checkpoint shows it",
}
"""Kind -> why not, or not on all of them."""

IN_ONE_LAYER = (
    ("zero-point-shift", "scale-group"), ("zero-point-shift", "dtype"), ("zero-point-shift", "clamp"),
    ("zero-point-shift", "nibble-order"), ("scale-group", "nibble-order"), ("scale-group", "dtype"),
    ("scale-group", "clamp"), ("nibble-order", "dtype"), ("nibble-order", "clamp"), ("dtype", "clamp"),
    ("g-idx-ignored", "zero-point-shift"), ("g-idx-ignored", "clamp"),
)  # fmt: skip
"""Pairs that are planted into one linear; the first is planted first, what it leaves is the second's."""

ALONE_ONLY = frozenset({"outside-linears", "nan-input", "all-reduce", "row-path"})
"""Kinds that are not paired: no linear has them, or they need a run of their own."""
