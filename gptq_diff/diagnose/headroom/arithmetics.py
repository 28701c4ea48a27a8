"""The sums that kernels hold in float16, by name, and which path goes through which."""

from __future__ import annotations

import math

from gptq_diff.kernels.fastpath import CHAINS, refusal
from gptq_diff.records import LayerSpec

LARGEST = 65504.0
"""The largest finite float16."""

LANE = "lane"
"""Fast path: an fp16 chain of unscaled products (2 and 3 bit: also the sum of a word's two chains)."""
BLOCK = "block"
"""Fast path: the scaled sum of 128 rows of K, and the output that those sums are added to, one after the other."""
ACCUMULATOR = "accumulator"
"""Reconstruct path: hgemm's running sum of scaled products, as `kernels.hgemm_model` has it."""
UNSCALED = "unscaled-sum"
"""Marlin with one group a column: the whole unscaled sum, narrowed to float16 before the scale."""
RESULT = "result"
"""What every kernel returns: y itself."""

_PATHS = {
    "exllama-fast": (LANE, BLOCK, RESULT),
    "exllama-v1": (LANE, ACCUMULATOR, RESULT),  # its scaled chains run through 256 or 384 rows: told as the whole sum
    "exllama-reconstruct": (ACCUMULATOR, RESULT),
    "marlin": (UNSCALED, RESULT),
}


def bits_left(value: float) -> float | None:
    """log2(65504 / |value|): doublings until that sum overflows, negative where it has; None for 0 and non-finite."""
    size = abs(value)
    return math.log2(LARGEST / size) if 0 < size < math.inf else None


def every_arithmetic(spec: LayerSpec) -> tuple[str, ...]:
    """Every sum that a kernel for this layer could hold in float16."""
    fast = not refusal(spec.bits, spec.in_features, spec.group_size)
    marlin = spec.group_size >= spec.in_features and spec.sym and spec.bits in (4, 8)
    held = {
        LANE: fast and CHAINS[spec.bits].lane > 0, BLOCK: fast, ACCUMULATOR: True, UNSCALED: marlin, RESULT: True,
    }  # fmt: skip
    return tuple(name for name, there in held.items() if there)


def arithmetics_of(path: str, spec: LayerSpec) -> tuple[str, ...]:
    """The sums that this path holds in float16 for this layer; of a kernel with float32 sums the result alone."""
    held = every_arithmetic(spec)
    return tuple(name for name in _PATHS.get(path, (RESULT,)) if name in held)
