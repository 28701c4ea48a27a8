"""Multiplying by a packed weight that is unpacked a tile at a time, into a cache, and never exists as a whole.

A band is 256 columns: less, and reading a row of words would cost a page for a few bytes. Its tiles are 128 rows of K
and 64 columns each, 32 KB of float32.

Shapes: x_BMK float32 [blocks of 128 rows of K, M, 128], the last one filled up with zeros. packed: (qweight int32 as
stored, zeros_GN and scales_GN float32, group_K int64 the group of every row, bits). Bands first to last - 1 are
computed; outputs have N padded to whole bands.
numba's cache looks at this file alone: after a change in `panel` or `gptq_diff.kernels.compiled`, touch this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptq_diff.kernels.compiled import compiled, inlined, round_half
from gptq_diff.kernels.tiled.panel import (
    MOST_ROWS,
    code_at,
    panel_1,
    panel_2,
    panel_3,
    panel_4,
    panel_5,
    panel_6,
)

STRIP = 64
TILES = 4
BAND = TILES * STRIP
DEPTH = 128
LANES = 16
"""Parts that a row's squares are added up in."""


@inlined
def _unpack(packed: Any, start: int, rows: int, band: int, tiles: Any) -> None:
    """tiles[s, k, n] = (code - zero) * scale of row start + k and the band's column 64 s + n; zero beyond the last."""
    if (band + 1) * BAND <= packed[0].shape[1] and 32 % packed[4] == 0:
        _unpack_whole(packed, start, rows, band, tiles)
    else:
        _unpack_any(packed, start, rows, band, tiles)


@inlined
def _unpack_whole(packed: Any, start: int, rows: int, band: int, tiles: Any) -> None:
    """For a band of 256 columns and codes that lie in one word: every count in the inner loop is known to LLVM."""
    qweight, zeros_GN, scales_GN, group_K, bits = packed
    mask = np.int32((1 << bits) - 1)
    for k in range(rows):
        word, shift = (start + k) * bits // 32, np.int32((start + k) * bits % 32)
        group = group_K[start + k]
        for s in range(TILES):
            column = band * BAND + s * STRIP
            words_C = qweight[word, column : column + STRIP]
            zero_C, scale_C = zeros_GN[group, column : column + STRIP], scales_GN[group, column : column + STRIP]
            for n in range(STRIP):
                tiles[s, k, n] = (code_at(words_C[n], words_C[n], shift, mask) - zero_C[n]) * scale_C[n]


@inlined
def _unpack_any(packed: Any, start: int, rows: int, band: int, tiles: Any) -> None:
    """For a band that may end early, and codes that may cross a word (3 bit)."""
    qweight, zeros_GN, scales_GN, group_K, bits = packed
    mask = np.int32((1 << bits) - 1)
    for k in range(rows):
        word, shift = (start + k) * bits // 32, np.int32((start + k) * bits % 32)
        crosses = shift + bits > 32
        group = group_K[start + k]
        for s in range(TILES):
            column = band * BAND + s * STRIP
            width = max(0, min(STRIP, qweight.shape[1] - column))
            low_C = qweight[word, column : column + width]
            high_C = qweight[word + crosses, column : column + width]
            zero_C, scale_C = zeros_GN[group, column : column + width], scales_GN[group, column : column + width]
            for n in range(width):
                tiles[s, k, n] = (code_at(low_C[n], high_C[n], shift, mask) - zero_C[n]) * scale_C[n]
            for n in range(width, STRIP):
                tiles[s, k, n] = np.float32(0)


@inlined
def _panel(x_MK: Any, m: int, rows: int, tile_RC: Any, first: int, last: int, sums_RC: Any) -> None:
    """The panel for that many rows of x."""
    if rows == 6:
        panel_6(x_MK, m, tile_RC, first, last, sums_RC)
    elif rows == 5:
        panel_5(x_MK, m, tile_RC, first, last, sums_RC)
    elif rows == 4:
        panel_4(x_MK, m, tile_RC, first, last, sums_RC)
    elif rows == 3:
        panel_3(x_MK, m, tile_RC, first, last, sums_RC)
    elif rows == 2:
        panel_2(x_MK, m, tile_RC, first, last, sums_RC)
    else:
        panel_1(x_MK, m, tile_RC, first, last, sums_RC)


@inlined
def _add_product(x_MK: Any, rows: int, tiles: Any, band: int, sums_RC: Any, y_MN: Any) -> None:
    """Y += x tiles, in the type of y; rows of x in equal parts of at most 6."""
    count = x_MK.shape[0]
    parts = (count + MOST_ROWS - 1) // MOST_ROWS
    for s in range(TILES):
        column = band * BAND + s * STRIP
        for part in range(parts):
            m = count * part // parts
            taken = count * (part + 1) // parts - m
            _panel(x_MK, m, taken, tiles[s], 0, rows, sums_RC)
            for r in range(taken):
                y_C, sums_C = y_MN[m + r, column : column + STRIP], sums_RC[r]
                for n in range(STRIP):
                    y_C[n] += sums_C[n]


@compiled
def multiply(
    x_BMK: Any, packed: Any, first: int, last: int,
    half: bool, y_MN: Any,
) -> None:  # fmt: skip
    """y_MN += x W; within a tile in float32, tile by tile in the type of y_MN. half: W is rounded to float16 before."""
    tiles = np.empty((TILES, DEPTH, STRIP), np.float32)
    sums_RC = np.empty((MOST_ROWS, STRIP), np.float32)
    for band in range(first, last):
        for block in range(x_BMK.shape[0]):
            start = block * DEPTH
            rows = min(DEPTH, len(packed[3]) - start)
            _unpack(packed, start, rows, band, tiles)
            if half:
                for s in range(TILES):
                    for k in range(rows):
                        for n in range(STRIP):
                            tiles[s, k, n] = round_half(tiles[s, k, n])
            _add_product(x_BMK[block], rows, tiles, band, sums_RC, y_MN)


@inlined
def _add_norms(tiles: Any, start: int, rows: int, norm2_KL: Any) -> None:
    """norm2_KL[start + k] += the squares of the band's row k, in 16 parts."""
    for s in range(TILES):
        for k in range(rows):
            w_C, norm2_L = tiles[s, k], norm2_KL[start + k]
            for n in range(LANES):
                norm2_L[n] += (w_C[n] * w_C[n] + w_C[n + 16] * w_C[n + 16]) + (
                    w_C[n + 32] * w_C[n + 32] + w_C[n + 48] * w_C[n + 48]
                )


@compiled
def multiply_with_norms(x_BMK: Any, packed: Any, first: int, last: int, y_MN: Any, norm2_KL: Any) -> None:
    """`multiply`; and norm2_KL[k] += the squares of W[k], in 16 parts."""
    tiles = np.empty((TILES, DEPTH, STRIP), np.float32)
    sums_RC = np.empty((MOST_ROWS, STRIP), np.float32)
    for band in range(first, last):
        for block in range(x_BMK.shape[0]):
            start = block * DEPTH
            rows = min(DEPTH, len(packed[3]) - start)
            _unpack(packed, start, rows, band, tiles)
            _add_product(x_BMK[block], rows, tiles, band, sums_RC, y_MN)
            _add_norms(tiles, start, rows, norm2_KL)


@compiled
def multiply_watched(
    x_BMK: Any, packed: Any, first: int, last: int, y_MN: Any, squares_MN: Any, top_BM: Any, norm2_KL: Any
) -> None:
    """`multiply_with_norms`, and what is known of the sums of 128 rows of K and of the running sum after each.

    squares_MN += the squares of both, but for the first running sum, which is the first of the others; top_BM: of every
    band the largest magnitude of any of them.
    """
    tiles = np.empty((TILES, DEPTH, STRIP), np.float32)
    sums_RC = np.empty((MOST_ROWS, STRIP), np.float32)
    for band in range(first, last):
        for block in range(x_BMK.shape[0]):
            start = block * DEPTH
            rows = min(DEPTH, len(packed[3]) - start)
            _unpack(packed, start, rows, band, tiles)
            _add_watched(x_BMK[block], rows, block > 0, tiles, band, sums_RC, y_MN, squares_MN, top_BM)
            _add_norms(tiles, start, rows, norm2_KL)


@inlined
def _add_watched(
    x_MK: Any, rows: int, again: Any, tiles: Any, band: int, sums_RC: Any, y_MN: Any, squares_MN: Any, top_BM: Any
) -> None:
    """again: whether these sums are added to others."""
    added = np.float32(again)
    count = x_MK.shape[0]
    parts = (count + MOST_ROWS - 1) // MOST_ROWS
    top_C = np.empty(STRIP, np.float32)
    for s in range(TILES):
        column = band * BAND + s * STRIP
        for part in range(parts):
            m = count * part // parts
            taken = count * (part + 1) // parts - m
            _panel(x_MK, m, taken, tiles[s], 0, rows, sums_RC)
            for r in range(taken):
                y_C, sums_C = y_MN[m + r, column : column + STRIP], sums_RC[r]
                squares_C = squares_MN[m + r, column : column + STRIP]
                for n in range(STRIP):
                    total = y_C[n] + sums_C[n]
                    y_C[n] = total
                    squares_C[n] += sums_C[n] * sums_C[n] + added * (total * total)
                    top_C[n] = max(abs(sums_C[n]), abs(total))
                top_BM[band, m + r] = max(top_BM[band, m + r], top_C.max())


@compiled
def multiply_squares(x_BMK: Any, packed: Any, first: int, last: int, y_MN: Any) -> None:
    """y_MN += x W^2, each weight squared."""
    tiles = np.empty((TILES, DEPTH, STRIP), np.float32)
    sums_RC = np.empty((MOST_ROWS, STRIP), np.float32)
    for band in range(first, last):
        for block in range(x_BMK.shape[0]):
            start = block * DEPTH
            rows = min(DEPTH, len(packed[3]) - start)
            _unpack(packed, start, rows, band, tiles)
            for s in range(TILES):
                for k in range(rows):
                    for n in range(STRIP):
                        tiles[s, k, n] *= tiles[s, k, n]
            _add_product(x_BMK[block], rows, tiles, band, sums_RC, y_MN)


@compiled
def largest_sums(
    x_BMK: Any, packed: Any, first: int, last: int,
    step: int, running_MN: Any, largest_SBT: Any,
) -> None:  # fmt: skip
    """Add x W up in `step` rows of K at a time, and keep what is largest in every tile.

    running_MN: zeros; the product in the end. largest_SBT, zeros, [strips, blocks, 3]: the largest magnitude, over all
    rows of x and the tile's columns, of the running sum after any step, of the sum of the tile's rows alone, and of the
    running sum after the tile.
    """
    tiles = np.empty((TILES, DEPTH, STRIP), np.float32)
    sums_RC, block_RC = np.empty((MOST_ROWS, STRIP), np.float32), np.empty((MOST_ROWS, STRIP), np.float32)
    top_TC = np.empty((3, STRIP), np.float32)
    for band in range(first, last):
        for block in range(x_BMK.shape[0]):
            start = block * DEPTH
            rows = min(DEPTH, len(packed[3]) - start)
            _unpack(packed, start, rows, band, tiles)
            for s in range(TILES):
                top_TC[:] = 0
                _watch_tile(
                    x_BMK[block], rows, step, tiles[s], band * BAND + s * STRIP, sums_RC, block_RC, running_MN, top_TC
                )
                for t in range(3):
                    largest_SBT[band * TILES + s, block, t] = top_TC[t].max()


@inlined
def _watch_tile(
    x_MK: Any, rows: int, step: int, tile_RC: Any, column: int, sums_RC: Any, block_RC: Any, running_MN: Any,
    top_TC: Any,
) -> None:  # fmt: skip
    count = x_MK.shape[0]
    parts = (count + MOST_ROWS - 1) // MOST_ROWS
    for part in range(parts):
        m = count * part // parts
        taken = count * (part + 1) // parts - m
        for k in range(0, rows, step):
            _panel(x_MK, m, taken, tile_RC, k, min(k + step, rows), sums_RC)
            for r in range(taken):
                running_C, sums_C, block_C = running_MN[m + r, column : column + STRIP], sums_RC[r], block_RC[r]
                for n in range(STRIP):
                    total = running_C[n] + sums_C[n]
                    running_C[n] = total
                    block_C[n] = sums_C[n] if k == 0 else block_C[n] + sums_C[n]
                    top_TC[0, n] = max(top_TC[0, n], abs(total))
        for r in range(taken):
            running_C, block_C = running_MN[m + r, column : column + STRIP], block_RC[r]
            for n in range(STRIP):
                top_TC[1, n] = max(top_TC[1, n], abs(block_C[n]))
                top_TC[2, n] = max(top_TC[2, n], abs(running_C[n]))
