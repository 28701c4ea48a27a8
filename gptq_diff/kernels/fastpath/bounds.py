"""What the fast path cannot do to a linear and an input, proved without simulating it (4 bit, rows of K in order).

**Overflow.** A lane adds at most four products x_k c_k, every step rounded to half: fl(z) is at most (1 + u) |z| + t
with u = 2^-11, t = 2^-25, as long as z is below 65520. By induction no partial sum of a lane is larger than

    L = (1 + u)^4 C sum of |x_k| over the lane's four rows of K, + 4 t,      C = the largest |code - zero|,

so that no lane overflows where L < 65520. A block's sum over 128 rows of K is kept in float32, which holds whatever
finite lanes give, and rounded to half once. It differs from the exact sum by what the lanes' roundings add up to: one
lane errs by at most ((1 + u)^4 - 1) C sum|x_k| + 4 t (the same induction), times its scale. With S the largest scale of
any column in the group,

    D = sum over the block's lanes of S (((1 + u)^4 - 1 + 2^-18) C sum|x_k| + 4 t)

bounds that, the block's own roundings in float32 included (17 of 2^-24 for each of its lanes). The output adds up B
blocks in half; while it stays below 65504, rounding a block and adding it errs by at most 16 each, half of the coarsest
spacing. So with T the largest magnitude of the sums of every block and of the running sum after each,

    T + sum of D over all blocks + 2^-12 sum of S C|x_k| + 32 B < 65504

leaves no block's result and no partial output infinite, blocks added in ascending order. T is computed in float32, 128
products and then B sums one after the other, which the third term covers up to K = 500,000.

**Error.** Rounding a partial sum p to half errs by at most ulp(p) / 2 <= 2^-11 |p|, with the mean square
ulp(p)^2 / 12 <= c p^2, c = 2^-20 / 12. By Cauchy and Schwarz the square of a sum of t products is at most t times the
sum of their squares, so of a lane's partial sums of 1, 2, 3 and 4 products the first product counts 1 + 2 + 3 + 4 = 10
times and no other more. Over all columns the products' squares are E = sum of x_k^2 |W_k|^2. The blocks' sums and the
running sums are known: Q is the sum of their squares. So a row's rounding has an expected square of at most

    V = 1.02 c (10 E + Q) + N B 2^-48 / 12

(1.02: sums on the way are rounded themselves, by less than (1 + 2^-9)^2 and float32's; the last term: blocks in half's
subnormal range; lanes and the output's additions are exact there). The same holds for a column, with every row's
squares weighted as the judge weights them. Where V is below the square of the judge's threshold, FACTOR^2 times the
noise floor, the fast path's rounding is not expected to pass it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.packing import unpack_zeros
from gptq_diff.kernels import compiler
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS, CHAINS, refusal
from gptq_diff.kernels.tiled import TiledWeight, Watched, product_of_squares, watched_product
from gptq_diff.numerics import floors
from gptq_diff.numerics.fp16 import HALF_MAX, HALF_OVERFLOW

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

BITS = 4
ROWS = 512
"""Rows of x that are bounded at most: more are simulated, or reconstructed, anyway."""
_CHAIN = CHAINS[BITS]
_GROWTH = (1 + 2.0**-11) ** _CHAIN.lane
_TINY = _CHAIN.lane * 2.0**-25
_MEAN = 2.0**-20 / 12
_LANE_STEPS = 10.0
_ROUNDED = 1.02


def can_bound(linear: PackedLinear) -> bool:
    """Whether these bounds hold for that linear, and can be computed here.

    4 bit, in groups that the kernel takes, rows of K in their order, and scales that are float16 without rounding.
    """
    spec = linear.spec
    ordinary = spec.bits == BITS and not refusal(spec.bits, spec.in_features, spec.group_size)
    if not ordinary or linear.g_idx is not None or linear.qweight.device.type != "cpu" or not compiler.available():
        return False
    scales_GN = linear.scales
    half_GN = scales_GN.to(torch.float16)
    return bool(torch.isfinite(half_GN).all()) and torch.equal(half_GN.to(scales_GN.dtype), scales_GN)


def largest_code(linear: PackedLinear) -> int:
    """The largest magnitude that code - zero can have with the linear's zero points: C."""
    spec = linear.spec
    zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
    return max(int(zeros_GN.max()), (1 << spec.bits) - 1 - int(zeros_GN.min()))


def lane_bound(x_MK: torch.Tensor, code: int) -> torch.Tensor:
    """float64 [M]: L, above every partial sum of every lane of a row; x float16, finite, K a multiple of 8."""
    return _lanes(x_MK, code).amax(dim=1) * _GROWTH + _TINY


def _lanes(x_MK: torch.Tensor, code: int) -> torch.Tensor:
    """float64 [M, lanes]: C sum|x_k|, the lanes of a word beside each other."""
    words = x_MK.double().abs_().view(len(x_MK), -1, _CHAIN.lane, 2)  # rows of K: 0 and 1 begin the two lanes
    return words.sum(dim=2).flatten(1) * code


def output_bound(x_MK: torch.Tensor, code: int, linear: PackedLinear, top_M: torch.Tensor) -> torch.Tensor:
    """float64 [M]: above every block's result and every partial output of a row; top_M: T, float32."""
    spec = linear.spec
    scale_G = linear.scales.double().abs().amax(dim=1)
    group_L = torch.arange(spec.in_features // _CHAIN.lane) // 2 * _CHAIN.word // spec.group_size
    lost_ML = (_lanes(x_MK, code) * (_GROWTH - 1 + 2.0**-18 + 2.0**-12) + _TINY) * scale_G[group_L]
    return top_M.double() + lost_ML.sum(dim=1) + 32.0 * -(-spec.in_features // BLOCK_ROWS)


def row_error2(watched: Watched, energy_M: torch.Tensor, in_features: int) -> torch.Tensor:
    """float64 [M]: V, above the expected square of the rounding error's norm over all columns."""
    blocks = -(-in_features // BLOCK_ROWS)
    squares_M = watched.squares_MN.sum(dim=1, dtype=torch.float64)
    subnormal = watched.y_MN.shape[1] * blocks * floors.SUBNORMAL_RMS**2
    return _ROUNDED * _MEAN * (_LANE_STEPS * energy_M + squares_M) + subnormal


def column_error2(watched: Watched, energy_N: torch.Tensor, weight_M: torch.Tensor, in_features: int) -> torch.Tensor:
    """float64 [N]: the same of every column over all rows, whose squares count weight_M times; energy_N too."""
    blocks = -(-in_features // BLOCK_ROWS)
    squares_N = weight_M @ watched.squares_MN.double()
    subnormal = float(weight_M.sum()) * blocks * floors.SUBNORMAL_RMS**2
    return _ROUNDED * _MEAN * (_LANE_STEPS * energy_N + squares_N) + subnormal


def bounded_product(x_MK: torch.Tensor, linear: PackedLinear) -> torch.Tensor | None:
    """The exact answer, float32 [M, N], where the fast path can neither overflow nor err beyond the floor; else None.

    x_MK: float16. Rows with a NaN or infinity are lost already: they are NaN in the answer, and bound nothing.
    """
    code, spec = largest_code(linear), linear.spec
    finite_M = torch.isfinite(x_MK).all(dim=1)
    x_MK = torch.where(finite_M[:, None], x_MK, 0.0)
    if len(x_MK) > ROWS or bool((lane_bound(x_MK, code) >= HALF_OVERFLOW).any()):
        return None
    weight = TiledWeight.of(linear)
    watched = watched_product(x_MK, weight)
    if bool((output_bound(x_MK, code, linear, watched.top_M) >= HALF_MAX).any()):
        return None
    energy_M = x_MK.double().square_() @ watched.norm2_K
    known = floors.Rows(energy_M, watched.y_MN.double().square().sum(dim=1), spec.in_features, spec.out_features, BITS)
    allowed = floors.FACTOR**2 * floors.expected_error2("exllama-fast", known)
    if bool((row_error2(watched, energy_M, spec.in_features) > allowed).any()):
        return None
    if not _columns_hold(x_MK, energy_M, watched, weight):
        return None
    y_MN = watched.y_MN
    y_MN[~finite_M] = torch.nan
    return y_MN


def _columns_hold(x_MK: torch.Tensor, energy_M: torch.Tensor, watched: Watched, weight: TiledWeight) -> bool:
    """Whether no column's rounding is expected beyond its threshold; columns are judged from eight rows on."""
    if int((energy_M > 0).sum()) < floors.FEWEST_ROWS:
        return True
    in_features = x_MK.shape[1]
    weight_M = torch.where(energy_M > 0, 1.0 / energy_M, 0.0)
    x2_1K = (weight_M @ x_MK.double().square())[None].float()
    energy_N = product_of_squares(x2_1K, weight)[0].double()
    exact2_N = weight_M @ watched.y_MN.double().square()
    known = floors.Rows(energy_N, exact2_N, in_features, float(weight_M.sum()), BITS)
    allowed = floors.FACTOR**2 * floors.expected_error2("exllama-fast", known)
    return not bool((column_error2(watched, energy_N, weight_M, in_features) > allowed).any())
