"""The fast path's sums in compiled loops, vectorised over 64 columns at a time; same bits as `plain`.

Lane chains come in two forms. `_lane` rounds the float32 sum of product and accumulator, which is one rounding of the
exact sum only while the float32 sum itself is exact; `exact_words` finds the words where it always is (nearly all, on
ordinary inputs). `_lane_once` is right everywhere and takes about three times as long.

Shapes: x_MK float32 holding halves; codes [strips, K, 64] and scales [strips, G, 64] as in `weight`; exact_MW of
`exact_words`; y_MN and blocks_BMN float32 with N padded to whole strips. Optional results are left out by a shape of
zero: blocks_BMN with B = 0, variance_MN with M = 0. Strips first to last - 1 are computed.
numba's cache looks at this file alone: after a change in `gptq_diff.kernels.compiled`, touch this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptq_diff.kernels.compiled import compiled, fma, from_bits, inlined, round_half, round_sum, to_bits

BLOCK = 128
STRIP = 64
ZERO = np.float32(0)


@compiled
def exact_words(x_MK: Any, word: int, largest_code: int, exact_MW: Any) -> None:
    """Mark the words of each row in which float32 holds every partial lane sum exactly, whatever the codes are.

    Every product and every rounded partial sum is a multiple of the finest spacing u among the lane's halves, and
    none exceeds largest_code * sum|x| by more than 16 roundings of 2**-11; float32 is exact up to 2**24 u.
    """
    rows, in_features = x_MK.shape
    for m in range(rows):
        for w in range(in_features // word):
            exact = True
            for lane in range(2):
                total = np.float32(0)
                finest = np.float32(np.inf)
                for k in range(w * word + lane, (w + 1) * word, 2):
                    value = abs(x_MK[m, k])
                    total += value
                    if value != 0:
                        power = from_bits(max(to_bits(value) & np.int32(0x7F800000), np.int32(0x38800000)))
                        finest = min(finest, power)
                exact = exact and total * np.float32(1.02 * largest_code) <= finest * np.float32(2.0**14)
            exact_MW[m, w] = exact


@inlined
def _lane(total: Any, x_K: Any, tile_RC: Any, row: int, column: int, steps: int) -> Any:
    """Add products of every second row to a half, one rounding each; right where the word is exact."""
    for j in range(steps):
        total = round_half(fma(x_K[row + 2 * j], tile_RC[row + 2 * j, column], total))
    return total


@inlined
def _lane_once(total: Any, x_K: Any, tile_RC: Any, row: int, column: int, steps: int) -> Any:
    """Add products of every second row to a half, one rounding each; right everywhere."""
    for j in range(steps):
        total = round_sum(x_K[row + 2 * j] * tile_RC[row + 2 * j, column], total)
    return total


@inlined
def _four_bit_word(x_K: Any, tile_RC: Any, k: int, exact: bool, scale_C: Any, block_C: Any, _variance_C: Any) -> None:
    """Two lanes of four, added in float32; float32 multiply-add with the scale."""
    if exact:
        for n in range(STRIP):
            lanes = _lane(ZERO, x_K, tile_RC, k, n, 4) + _lane(ZERO, x_K, tile_RC, k + 1, n, 4)
            block_C[n] = fma(lanes, scale_C[n], block_C[n])
    else:
        for n in range(STRIP):
            lanes = _lane_once(ZERO, x_K, tile_RC, k, n, 4) + _lane_once(ZERO, x_K, tile_RC, k + 1, n, 4)
            block_C[n] = fma(lanes, scale_C[n], block_C[n])


@inlined
def _two_bit_word(x_K: Any, tile_RC: Any, k: int, exact: bool, scale_C: Any, block_C: Any, _variance_C: Any) -> None:
    """Two lanes of eight, added in half; half multiply-add with the scale."""
    if exact:
        for n in range(STRIP):
            lanes = _lane(ZERO, x_K, tile_RC, k, n, 8) + _lane(ZERO, x_K, tile_RC, k + 1, n, 8)
            block_C[n] = round_sum(round_half(lanes) * scale_C[n], block_C[n])
    else:
        for n in range(STRIP):
            lanes = _lane_once(ZERO, x_K, tile_RC, k, n, 8) + _lane_once(ZERO, x_K, tile_RC, k + 1, n, 8)
            block_C[n] = round_sum(round_half(lanes) * scale_C[n], block_C[n])


@inlined
def _three_bit_word(x_K: Any, tile_RC: Any, k: int, exact: bool, scale_C: Any, block_C: Any, _variance_C: Any) -> None:
    """Two lanes of sixteen, in halves of eight that LLVM still unrolls; added in half; half multiply-add."""
    if exact:
        for n in range(STRIP):
            even = _lane(_lane(ZERO, x_K, tile_RC, k, n, 8), x_K, tile_RC, k + 16, n, 8)
            odd = _lane(_lane(ZERO, x_K, tile_RC, k + 1, n, 8), x_K, tile_RC, k + 17, n, 8)
            block_C[n] = round_sum(round_half(even + odd) * scale_C[n], block_C[n])
    else:
        for n in range(STRIP):
            even = _lane_once(_lane_once(ZERO, x_K, tile_RC, k, n, 8), x_K, tile_RC, k + 16, n, 8)
            odd = _lane_once(_lane_once(ZERO, x_K, tile_RC, k + 1, n, 8), x_K, tile_RC, k + 17, n, 8)
            block_C[n] = round_sum(round_half(even + odd) * scale_C[n], block_C[n])


@inlined
def _eight_bit_word(x_K: Any, tile_RC: Any, k: int, _exact: bool, scale_C: Any, block_C: Any, _variance_C: Any) -> None:
    """Eight products in float32, times the scale in float32, rounded to half, added in half."""
    for n in range(STRIP):
        total = ZERO
        for j in range(8):
            total = fma(x_K[k + j], tile_RC[k + j, n], total)
        block_C[n] = round_half(round_half(total * scale_C[n]) + block_C[n])


@inlined
def _add_block(block_C: Any, b: int, m: int, column: int, y_MN: Any, blocks_BMN: Any) -> None:
    """Round a block's sum to half and add it to the output in half."""
    for n in range(STRIP):
        block = round_half(block_C[n])
        block_C[n] = block
        y_MN[m, column + n] = round_half(y_MN[m, column + n] + block)
    if b < blocks_BMN.shape[0]:
        for n in range(STRIP):
            blocks_BMN[b, m, column + n] = block_C[n]


@inlined
def walk(
    add_word: Any, word: int, x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """The way through strips, blocks of 128 rows, rows of x and words that all bit widths share."""
    in_features = x_MK.shape[1]
    tile_RC = np.empty((BLOCK, STRIP), np.float32)
    block_C = np.empty(STRIP, np.float32)
    variance_C = np.zeros(STRIP, np.float32)
    for strip in range(first, last):
        for b in range((in_features + BLOCK - 1) // BLOCK):
            start = b * BLOCK
            rows = min(BLOCK, in_features - start)
            for k in range(rows):
                for n in range(STRIP):
                    tile_RC[k, n] = codes[strip, start + k, n]
            for m in range(x_MK.shape[0]):
                x_K = x_MK[m, start : start + rows]
                block_C[:] = 0
                for k in range(0, rows, word):
                    exact = exact_MW[m, (start + k) // word]
                    add_word(x_K, tile_RC, k, exact, scales[strip, (start + k) // group_size], block_C, variance_C)
                _add_block(block_C, b, m, strip * STRIP, y_MN, blocks_BMN)
                if m < variance_MN.shape[0]:
                    for n in range(STRIP):
                        variance_MN[m, strip * STRIP + n] += variance_C[n]
                        variance_C[n] = 0


@compiled
def four_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """See `chains`."""
    walk(_four_bit_word, 8, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def two_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """See `chains`."""
    walk(_two_bit_word, 16, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def three_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """See `chains`."""
    walk(_three_bit_word, 32, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def eight_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """See `chains`; exact_MW is not looked at, the sums are float32's own."""
    walk(_eight_bit_word, 8, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)
