"""The model of `hgemm_model` in a compiled loop, vectorised over 64 columns at a time; same bits as its numpy form.

numba's cache looks at this file alone: after a change in `gptq_diff.kernels.compiled`, touch this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptq_diff.kernels.compiled import compiled, fma, half_of_bits, inlined, round_half
from gptq_diff.kernels.strips import STRIP

_BLOCK = 128
_STEP = 16


@inlined
def _step(x_K: Any, tile_RC: Any, k: int, total_C: Any) -> None:
    """Sixteen products in float32, added to the half accumulators with one rounding."""
    for n in range(STRIP):
        products = np.float32(0)
        for j in range(_STEP):
            products = fma(x_K[k + j], tile_RC[k + j, n], products)
        total_C[n] = round_half(total_C[n] + products)


@compiled
def multiply(x_MK: Any, bits: Any, first: int, last: int, y_MN: Any) -> None:
    """y_MN += x_MK w for strips first to last - 1.

    x_MK: float32 holding halves, K a multiple of 16. bits: uint16 [strips, K, 64], the bits of the half weights.
    y_MN: float32 [M, strips * 64], zeros; accumulators between blocks of 128 rows, the result in the end.
    """
    in_features = x_MK.shape[1]
    tile_RC = np.empty((_BLOCK, STRIP), np.float32)
    for strip in range(first, last):
        for start in range(0, in_features, _BLOCK):
            rows = min(_BLOCK, in_features - start)
            for k in range(rows):
                for n in range(STRIP):
                    tile_RC[k, n] = half_of_bits(bits[strip, start + k, n])
            for m in range(x_MK.shape[0]):
                x_K = x_MK[m, start : start + rows]
                total_C = y_MN[m, strip * STRIP : (strip + 1) * STRIP]
                for k in range(0, rows, _STEP):
                    _step(x_K, tile_RC, k, total_C)
