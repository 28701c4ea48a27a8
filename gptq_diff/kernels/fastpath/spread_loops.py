"""The fast path's sums in compiled loops again, adding up the squared spacing of every rounded partial sum.

variance_MN is in units of 2**-20 / 12: `ulp_squared` gives the square of a half's power of two, an ulp is 2**-10 of
it, and a rounding's expected square is a twelfth of the ulp's. Lanes here are always rounded the careful way.
Sums of multiples of 2**-24 do not round below 2**-13, and are not counted there.
"""

from __future__ import annotations

from typing import Any

from gptq_diff.kernels.compiled import compiled, fma, inlined, round_half, round_sum, sum_ulp_squared, ulp_squared
from gptq_diff.kernels.fastpath.loops import STRIP, ZERO, walk


@inlined
def _lane(total: Any, squares: Any, x_K: Any, tile_RC: Any, row: int, column: int, steps: int) -> Any:
    """A lane's chain and the sum of its steps' squared spacings."""
    for j in range(steps):
        total = round_sum(x_K[row + 2 * j] * tile_RC[row + 2 * j, column], total)
        squares += sum_ulp_squared(total)
    return total, squares


@inlined
def _four_bit_word(x_K: Any, tile_RC: Any, k: int, _exact: bool, scale_C: Any, block_C: Any, variance_C: Any) -> None:
    last = k + 8 == x_K.shape[0]
    for n in range(STRIP):
        even, squares = _lane(ZERO, ZERO, x_K, tile_RC, k, n, 4)
        odd, squares = _lane(ZERO, squares, x_K, tile_RC, k + 1, n, 4)
        block_C[n] = fma(even + odd, scale_C[n], block_C[n])
        variance_C[n] += squares * (scale_C[n] * scale_C[n])
    if last:
        for n in range(STRIP):
            variance_C[n] += ulp_squared(round_half(block_C[n]))


@inlined
def _two_bit_word(x_K: Any, tile_RC: Any, k: int, _exact: bool, scale_C: Any, block_C: Any, variance_C: Any) -> None:
    for n in range(STRIP):
        even, squares = _lane(ZERO, ZERO, x_K, tile_RC, k, n, 8)
        odd, squares = _lane(ZERO, squares, x_K, tile_RC, k + 1, n, 8)
        both = round_half(even + odd)
        block_C[n] = round_sum(both * scale_C[n], block_C[n])
        variance_C[n] += (squares + sum_ulp_squared(both)) * (scale_C[n] * scale_C[n]) + ulp_squared(block_C[n])


@inlined
def _three_bit_word(x_K: Any, tile_RC: Any, k: int, _exact: bool, scale_C: Any, block_C: Any, variance_C: Any) -> None:
    for n in range(STRIP):
        even, squares = _lane(ZERO, ZERO, x_K, tile_RC, k, n, 4)
        odd, squares = _lane(ZERO, squares, x_K, tile_RC, k + 1, n, 4)
        for row in range(k + 8, k + 32, 8):
            even, squares = _lane(even, squares, x_K, tile_RC, row, n, 4)
            odd, squares = _lane(odd, squares, x_K, tile_RC, row + 1, n, 4)
        both = round_half(even + odd)
        block_C[n] = round_sum(both * scale_C[n], block_C[n])
        variance_C[n] += (squares + sum_ulp_squared(both)) * (scale_C[n] * scale_C[n]) + ulp_squared(block_C[n])


@inlined
def _eight_bit_word(x_K: Any, tile_RC: Any, k: int, _exact: bool, scale_C: Any, block_C: Any, variance_C: Any) -> None:
    for n in range(STRIP):
        total = ZERO
        for j in range(8):
            total = fma(x_K[k + j], tile_RC[k + j, n], total)
        scaled = round_half(total * scale_C[n])
        block_C[n] = round_half(scaled + block_C[n])
        variance_C[n] += ulp_squared(scaled) + sum_ulp_squared(block_C[n])


@compiled
def four_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """Lane steps and the block's rounding."""
    walk(_four_bit_word, 8, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def two_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """Lane steps, lane addition, scale step."""
    walk(_two_bit_word, 16, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def three_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """Lane steps, lane addition, scale step."""
    walk(_three_bit_word, 32, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)


@compiled
def eight_bit(
    x_MK: Any, codes: Any, scales: Any, group_size: int, exact_MW: Any,
    first: int, last: int, y_MN: Any, blocks_BMN: Any, variance_MN: Any,
) -> None:  # fmt: skip
    """The scaled word and its addition."""
    walk(_eight_bit_word, 8, x_MK, codes, scales, group_size, exact_MW, first, last, y_MN, blocks_BMN, variance_MN)
