"""The fast path as functions of arrays: compiled loops where they run, plain numpy with the same bits elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptq_diff.kernels import compiler
from gptq_diff.kernels.fastpath import plain
from gptq_diff.kernels.fastpath.additions import random_order, worst_order
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS, CHAINS
from gptq_diff.kernels.fastpath.weight import PreparedWeight, prepare
from gptq_diff.kernels.strips import STRIP, canonical_nan, share_strips
from gptq_diff.kernels.tiled import TiledWeight
from gptq_diff.numerics.fp16 import Float16, Float32

_BLOCK_RESULTS = 1 << 23
"""Block results that the spread holds at a time (a dozen bytes each): rows of x are taken in parts for that."""


def simulate_fast_path(
    x_MK: Float16,
    codes_KN: npt.NDArray[Any],
    scales_GN: Float16,
    group_size: int,
    bits: int,
    per_block: bool = False,
) -> Float16:
    """The fused GPTQ kernel of vLLM, every rounding in its place, whatever M is.

    x_MK: [M, K] float16, finite or not. codes_KN: [K, N] integers, code - zero, not scaled. scales_GN: [G, N]
    float16. Rows of K are in the kernel's order: with desc_act sorted by group, x permuted alike.
    Returns y [M, N] float16 with the blocks of 128 rows added in ascending K from +0 (the GPU's atomics have no
    fixed order: there the last bits differ from run to run); with per_block [blocks, M, N], each block's own result.
    The arithmetic and its source: `gptq_diff.kernels.fastpath.chains`. NaN payloads are not modelled.
    Raises ValueError for shapes and types that the kernel does not take.
    """
    return run_prepared(x_MK, prepare(codes_KN, scales_GN, group_size, bits), per_block)


def fast_path_spread(
    x_MK: Float16,
    codes_KN: npt.NDArray[Any],
    scales_GN: Float16,
    group_size: int,
    bits: int,
    order: Literal["worst", "random"] = "worst",
) -> tuple[Float16, Float32]:
    """The simulated y [M, N] float16, and the expected size of its rounding error, [M, N] float32, same unit as y.

    Each rounding to half of a partial sum p is taken as an independent error of ulp(p) / sqrt(12) (an even spread
    over one spacing), times the scale if it happens before the scale; the result is the root of the sum of squares:

    - 2, 3 and 4 bit: every lane step; 2 and 3 bit also the lane addition and the scale step; 8 bit the scaled
      word and its addition (roundings to float32, 2**-13 of these, are left out);
    - 4 bit: the block's rounding;
    - the B - 1 additions of block results to the output, whose order the GPU does not fix: an upper bound over all
      orders ("worst"; grows like B**1.5), or the expectation over them ("random"; like B); see `additions`.

    Infinite where a partial sum is not finite. Sums of multiples of 2**-24 that are below 2**-13 never round and are
    not counted; other steps that happen to be exact are counted as if they rounded.
    """
    return spread_prepared(x_MK, prepare(codes_KN, scales_GN, group_size, bits), order)


def run_prepared(x_MK: Float16, weight: PreparedWeight, per_block: bool = False, threads: int | None = None) -> Float16:
    """`simulate_fast_path` for a weight that was brought into strips before; threads: None for one a CPU."""
    _check(x_MK, weight)
    if not compiler.available():
        blocks = plain.block_sums(x_MK, weight)
        return canonical_nan(blocks if per_block else plain.add_blocks(blocks))
    sums = _Sums.empty(x_MK, weight, per_block=per_block, spread=False)
    _run(x_MK, weight, sums, threads)
    result = sums.blocks_BMN if per_block else sums.y_MN
    return canonical_nan(result[..., : weight.columns].astype(np.float16))


def run_packed(x_MK: Float16, weight: TiledWeight, threads: int | None = None) -> Float16:
    """`simulate_fast_path` on a packed 4-bit weight whose rows are in the kernel's order; compiled loops must run here.

    Nothing of the weight is kept, and nothing but a tile of it is ever unpacked.
    """
    from gptq_diff.kernels.fastpath import loops, packed_loops

    chain = CHAINS[4]
    rows, bands = len(x_MK), -(-weight.columns // packed_loops.BAND)
    x_wide = np.ascontiguousarray(x_MK.astype(np.float32))
    exact_MW = np.zeros((rows, x_MK.shape[1] // chain.word), np.bool_)
    loops.exact_words(x_wide, chain.word, chain.largest_code, exact_MW)
    y_MN = np.zeros((rows, bands * packed_loops.BAND), np.float32)

    def work(first: int, last: int) -> None:
        packed_loops.four_bit(x_wide, weight.packed, exact_MW, first, last, y_MN)

    share_strips(work, bands, (rows + 8) * x_MK.shape[1] * packed_loops.BAND, threads)
    return canonical_nan(y_MN[:, : weight.columns].astype(np.float16))


def spread_prepared(
    x_MK: Float16, weight: PreparedWeight, order: Literal["worst", "random"] = "worst", threads: int | None = None
) -> tuple[Float16, Float32]:
    """`fast_path_spread` for a weight that was brought into strips before."""
    _check(x_MK, weight)
    rows = max(1, _BLOCK_RESULTS * BLOCK_ROWS // (weight.rows * weight.columns))
    parts = [_spread(x_MK[m : m + rows], weight, order, threads) for m in range(0, max(1, len(x_MK)), rows)]
    return np.concatenate([y_MN for y_MN, _ in parts]), np.concatenate([rms_MN for _, rms_MN in parts])


def _spread(
    x_MK: Float16, weight: PreparedWeight, order: Literal["worst", "random"], threads: int | None
) -> tuple[Float16, Float32]:
    if compiler.available():
        sums = _Sums.empty(x_MK, weight, per_block=True, spread=True)
        _run(x_MK, weight, sums, threads)
        y_MN = sums.y_MN[:, : weight.columns].astype(np.float16)
        variance = sums.variance_MN[:, : weight.columns].astype(np.float64) * (2.0**-20 / 12)
        blocks = sums.blocks_BMN[..., : weight.columns].astype(np.float16)
    else:
        blocks, variance = plain.spread(x_MK, weight)
        y_MN = plain.add_blocks(blocks)
    variance = variance + {"worst": worst_order, "random": random_order}[order](blocks)
    rms_MN = np.sqrt(np.where(np.isfinite(variance), variance, np.inf)).astype(np.float32)
    return canonical_nan(y_MN), rms_MN


def _check(x_MK: npt.NDArray[Any], weight: PreparedWeight) -> None:
    if x_MK.dtype != np.float16 or x_MK.ndim != 2 or x_MK.shape[1] != weight.rows:
        raise ValueError(f"x is {x_MK.dtype} {list(x_MK.shape)}, not float16 [M, {weight.rows}]")


@dataclass(frozen=True)
class _Sums:
    """What the loops write, float32, N padded to strips; optional parts are empty when they are not wanted."""

    y_MN: Float32
    blocks_BMN: Float32
    variance_MN: Float32

    @staticmethod
    def empty(x_MK: Float16, weight: PreparedWeight, *, per_block: bool, spread: bool) -> _Sums:
        rows, columns = x_MK.shape[0], weight.codes.shape[0] * STRIP
        blocks = -(-weight.rows // BLOCK_ROWS) if per_block else 0
        return _Sums(
            np.zeros((rows, columns), np.float32),
            np.zeros((blocks, rows, columns), np.float32),
            np.zeros((rows if spread else 0, columns), np.float32),
        )


def _run(x_MK: Float16, weight: PreparedWeight, sums: _Sums, threads: int | None) -> None:
    from gptq_diff.kernels.fastpath import loops, spread_loops

    chain = CHAINS[weight.bits]
    x_wide = np.ascontiguousarray(x_MK.astype(np.float32))
    exact_MW = np.zeros((x_MK.shape[0], weight.rows // chain.word), np.bool_)
    if chain.lane and not len(sums.variance_MN):
        loops.exact_words(x_wide, chain.word, chain.largest_code, exact_MW)
    module: Any = spread_loops if len(sums.variance_MN) else loops
    loop = {2: module.two_bit, 3: module.three_bit, 4: module.four_bit, 8: module.eight_bit}[weight.bits]
    what = (x_wide, weight.codes, weight.scales, weight.group_size, exact_MW)

    def work(first: int, last: int) -> None:
        loop(*what, first, last, sums.y_MN, sums.blocks_BMN, sums.variance_MN)

    share_strips(work, weight.codes.shape[0], x_MK.shape[0] * weight.rows * STRIP, threads)
