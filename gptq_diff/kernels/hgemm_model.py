"""A stated model of cuBLAS's hgemm with a half accumulator, as vLLM's reconstruct path calls it.

Not bit exact, and no copy of one algorithm: the products of 16 consecutive rows of K (the depth of one tensor core
instruction, mma.m16n8k16, https://docs.nvidia.com/cuda/parallel-thread-execution/) are added in float32, in ascending
order from +0; that sum and the half accumulator are added in float32 and rounded to half. So K / 16 roundings in
sequence, and infinity as soon as the accumulator leaves the halves, however small the final sum is. cuBLAS also
chooses algorithms that split K into several accumulators (then +inf and -inf may meet in NaN) or that keep more bits.

Source of the call: https://github.com/vllm-project/vllm/blob/v0.20.2/csrc/quantization/gptq/q_gemm.cu (cublasHgemm).

Relative l2 error against float64, standard normal x and w, as `tests/kernels/test_sim_hgemm.py` measures it, beside
what an H100 measured on ordinary inputs (0.20.2's op, M > 50; cuBLAS picks another algorithm for another K and M):

    K        this model   H100
    1536     1.4e-3       7e-4
    5120     2.6e-3       2.6e-3
    27648    6.1e-3       3.5e-3 to 6e-3
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptq_diff.kernels import compiler
from gptq_diff.kernels.strips import STRIP, canonical_nan, from_strips, share_strips, to_strips
from gptq_diff.numerics.fp16 import Float16

STEP = 16
"""Rows of K between two roundings of the accumulator."""


@dataclass(frozen=True)
class HalfWeight:
    """A half weight in strips, K padded with zeros to a multiple of 16 and N to a multiple of 64.

    bits: uint16 [strips, K, 64], the halves' bits. rows, columns: K and N without the padding.
    """

    bits: npt.NDArray[np.uint16]
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.bits.nbytes


def prepare_half(w_KN: Float16) -> HalfWeight:
    """Bring a half weight [K, N] into strips."""
    if w_KN.dtype != np.float16 or w_KN.ndim != 2:
        raise ValueError(f"w is {w_KN.dtype} {list(w_KN.shape)}, not float16 [K, N]")
    rows, columns = w_KN.shape
    padded = np.pad(w_KN, ((0, -rows % STEP), (0, 0)))
    return HalfWeight(to_strips(np.ascontiguousarray(padded).view(np.uint16)), rows, columns)


def simulate_reconstruct(x_MK: Float16, w_KN: Float16) -> Float16:
    """The model's y [M, N] float16 for x [M, K] and w [K, N] float16; see the module for what it is and is not."""
    return multiply_prepared(x_MK, prepare_half(w_KN))


def multiply_prepared(x_MK: Float16, weight: HalfWeight, threads: int | None = None) -> Float16:
    """`simulate_reconstruct` for a weight that was brought into strips before; threads: None for one a CPU."""
    if x_MK.dtype != np.float16 or x_MK.ndim != 2 or x_MK.shape[1] != weight.rows:
        raise ValueError(f"x is {x_MK.dtype} {list(x_MK.shape)}, not float16 [M, {weight.rows}]")
    x_wide = np.pad(x_MK.astype(np.float32), ((0, 0), (0, -weight.rows % STEP)))
    if not compiler.available():
        return canonical_nan(multiply_plain(x_wide, weight))
    from gptq_diff.kernels import hgemm_loops

    strips = weight.bits.shape[0]
    y_MN = np.zeros((x_MK.shape[0], strips * STRIP), np.float32)

    def work(first: int, last: int) -> None:
        hgemm_loops.multiply(x_wide, weight.bits, first, last, y_MN)

    share_strips(work, strips, x_wide.size * STRIP, threads)
    return canonical_nan(y_MN[:, : weight.columns].astype(np.float16))


def multiply_plain(x_MK: npt.NDArray[np.float32], weight: HalfWeight) -> Float16:
    """The model in plain numpy; x as float32, K padded. A product of two halves is exact in float32."""
    w_KN = from_strips(weight.bits, weight.columns).view(np.float16).astype(np.float32)
    y_MN = np.zeros((x_MK.shape[0], weight.columns), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, w_KN.shape[0], STEP):
            products = np.zeros(y_MN.shape, np.float32)
            for k in range(start, start + STEP):
                products += x_MK[:, k, None] * w_KN[None, k]
            y_MN = (y_MN.astype(np.float32) + products).astype(np.float16)
    return y_MN
