"""The 4-bit fast path on a packed weight that is unpacked tile by tile; same bits as `loops` on a prepared one.

A large weight is used once a step: bringing all of it into strips first would cost half as much as simulating 37 rows.
Shapes as in `loops` and `gptq_diff.kernels.tiled.loops`; rows of K in the kernel's order. Bands first to last - 1.
numba's cache looks at this file alone: after a change in `loops`, `panel` or `compiled`, touch this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptq_diff.kernels.compiled import compiled, inlined
from gptq_diff.kernels.fastpath.loops import BLOCK, STRIP, _add_block, _four_bit_word
from gptq_diff.kernels.tiled.panel import code_at

TILES = 4
BAND = TILES * STRIP
WORD = 8


@inlined
def _codes(packed: Any, start: int, rows: int, band: int, tiles: Any) -> None:
    """tiles[s, k, n] = code - zero of row start + k and the band's column 64 s + n; zero beyond the last column."""
    qweight, zeros_GN, _scales_GN, group_K, _bits = packed
    mask = np.int32(15)
    for k in range(rows):
        word, shift = (start + k) // WORD, np.int32((start + k) % WORD * 4)
        group = group_K[start + k]
        for s in range(TILES):
            column = band * BAND + s * STRIP
            width = max(0, min(STRIP, qweight.shape[1] - column))
            words_C, zero_C = qweight[word, column : column + width], zeros_GN[group, column : column + width]
            for n in range(width):
                tiles[s, k, n] = code_at(words_C[n], words_C[n], shift, mask) - zero_C[n]
            for n in range(width, STRIP):
                tiles[s, k, n] = np.float32(0)


@inlined
def _scales(packed: Any, k: int, column: int, scale_C: Any) -> None:
    """The scales of row k's group, zero beyond the last column."""
    _qweight, _zeros_GN, scales_GN, group_K, _bits = packed
    width = max(0, min(STRIP, scales_GN.shape[1] - column))
    for n in range(width):
        scale_C[n] = scales_GN[group_K[k], column + n]
    for n in range(width, STRIP):
        scale_C[n] = np.float32(0)


@compiled
def four_bit(x_MK: Any, packed: Any, exact_MW: Any, first: int, last: int, y_MN: Any) -> None:
    """y_MN, zeros: the simulated output as float32."""
    in_features = x_MK.shape[1]
    tiles = np.empty((TILES, BLOCK, STRIP), np.float32)
    scales_WC = np.empty((BLOCK // WORD, STRIP), np.float32)
    block_C, variance_C = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    no_blocks = np.empty((0, 0, 0), np.float32)
    for band in range(first, last):
        for b in range((in_features + BLOCK - 1) // BLOCK):
            start = b * BLOCK
            rows = min(BLOCK, in_features - start)
            _codes(packed, start, rows, band, tiles)
            for s in range(TILES):
                column = band * BAND + s * STRIP
                for k in range(0, rows, WORD):
                    _scales(packed, start + k, column, scales_WC[k // WORD])
                for m in range(x_MK.shape[0]):
                    x_K = x_MK[m, start : start + rows]
                    block_C[:] = 0
                    for k in range(0, rows, WORD):
                        exact = exact_MW[m, (start + k) // WORD]
                        _four_bit_word(x_K, tiles[s], k, exact, scales_WC[k // WORD], block_C, variance_C)
                    _add_block(block_C, b, m, column, y_MN, no_blocks)
