"""The fast path's sums in plain numpy, one rounding at a time: the fallback, and the readable form of `chains`.

Sums of integer multiples of halves are exact in float64 (all are multiples of 2**-24 below 2**27), so that `astype`
to half is the one rounding; only the scale steps need `add_to_odd`, inside fma_half and fma_single.
"""

from __future__ import annotations

import enum
from typing import Any, Callable, Optional

import numpy as np

from gptq_diff.kernels.fastpath import weight as weights
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS, CHAINS, Chain
from gptq_diff.kernels.fastpath.weight import PreparedWeight
from gptq_diff.numerics.fp16 import (
    HALF_MIN_ULP,
    Float16,
    Float32,
    Float64,
    fma_half,
    fma_single,
    round_to_half,
    ulp_half,
)


class Step(enum.Enum):
    """What was rounded: any number, or a sum of multiples of 2**-24, which is exact where halves are spaced so."""

    ROUNDED = enum.auto()
    SUMMED = enum.auto()


Watch = Optional[Callable[[Float16, Float32, Step], None]]
"""Called with every rounded partial sum [M, N] and the factor [N] by which its error reaches the block's sum."""

_WordSum = Callable[[Float64, Float64, Float32, Any, Chain, Watch], Any]

_ONE = np.ones(1, np.float32)


def block_sums(x_MK: Float16, weight: PreparedWeight, watch: Watch = None) -> Float16:
    """Every block's half result, [blocks, M, N], blocks in ascending K."""
    chain = CHAINS[weight.bits]
    codes = weights.unstripped_codes(weight).astype(np.float64)
    scales = weights.unstripped_scales(weight)
    word_sum: _WordSum = {4: _four_bit, 8: _eight_bit}.get(weight.bits, _half_scaled)
    shape = (-(-weight.rows // BLOCK_ROWS), x_MK.shape[0], weight.columns)
    blocks = np.zeros(shape, np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(shape[0]):
            total: Any = np.zeros(shape[1:], np.float32 if weight.bits == 4 else np.float16)
            for k in range(b * BLOCK_ROWS, min((b + 1) * BLOCK_ROWS, weight.rows), chain.word):
                x = x_MK[:, k : k + chain.word].astype(np.float64)
                scale = scales[k // weight.group_size]
                total = word_sum(x, codes[k : k + chain.word], scale, total, chain, watch)
            blocks[b] = total.astype(np.float16)
            if watch and weight.bits == 4:
                watch(blocks[b], _ONE, Step.ROUNDED)
    return blocks


def add_blocks(blocks_BMN: Float16) -> Float16:
    """The output: block results added to +0 in half, in ascending K."""
    y = np.zeros(blocks_BMN.shape[1:], np.float16)
    with np.errstate(invalid="ignore"):
        for block in blocks_BMN:
            y = round_to_half(y.astype(np.float64) + block.astype(np.float64))
    return y


def spread(x_MK: Float16, weight: PreparedWeight) -> tuple[Float16, Float64]:
    """Every block's half result [blocks, M, N] and the variance of all roundings inside blocks [M, N]."""
    variance = np.zeros((x_MK.shape[0], weight.columns))

    def add(partial: Float16, factor: Float32, step: Step) -> None:
        unit = ulp_half(partial).astype(np.float64)
        if step is Step.SUMMED:
            unit = np.where(unit > HALF_MIN_ULP, unit, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            variance[:] += (unit * factor) ** 2 / 12

    return block_sums(x_MK, weight, add), variance


def _lanes(x: Float64, codes: Float64, chain: Chain, scale: Float32, watch: Watch) -> list[Float16]:
    lanes = []
    for lane in range(2):
        total = np.zeros((x.shape[0], codes.shape[1]), np.float16)
        for j in range(lane, chain.word, 2):
            total = round_to_half(total.astype(np.float64) + x[:, j, None] * codes[None, j])
            if watch:
                watch(total, scale, Step.SUMMED)
        lanes.append(total)
    return lanes


def _four_bit(x: Float64, codes: Float64, scale: Float32, total: Any, chain: Chain, watch: Watch) -> Float32:
    even, odd = _lanes(x, codes, chain, scale, watch)
    return fma_single(even.astype(np.float32) + odd.astype(np.float32), scale, total)


def _half_scaled(x: Float64, codes: Float64, scale: Float32, total: Any, chain: Chain, watch: Watch) -> Float16:
    even, odd = _lanes(x, codes, chain, scale, watch)
    both = round_to_half(even.astype(np.float64) + odd.astype(np.float64))
    result = fma_half(both, scale, total)
    if watch:
        watch(both, scale, Step.SUMMED)
        watch(result, _ONE, Step.ROUNDED)
    return result


def _eight_bit(x: Float64, codes: Float64, scale: Float32, total: Any, chain: Chain, watch: Watch) -> Float16:
    products = np.zeros((x.shape[0], codes.shape[1]), np.float32)
    for j in range(chain.word):
        products = (products.astype(np.float64) + x[:, j, None] * codes[None, j]).astype(np.float32)
    scaled = (products * scale).astype(np.float16)
    result = round_to_half(scaled.astype(np.float64) + total.astype(np.float64))
    if watch:
        watch(scaled, _ONE, Step.ROUNDED)
        watch(result, _ONE, Step.SUMMED)
    return result
