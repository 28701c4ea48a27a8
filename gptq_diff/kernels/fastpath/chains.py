"""What vLLM's fused GPTQ kernel computes for each bit width, as facts read in its source.

Sources, the same in 0.5.1, 0.20.2 and 0.33.0:
https://github.com/vllm-project/vllm/blob/v0.20.2/csrc/quantization/gptq/q_gemm.cu (kernels `gemm_half_q_half_gptq_*`,
dot products `dot22_8_f`, `dot22_8_h`, `dot22_16_h`, `dot22_32_h`) and qdq_2.cuh, qdq_3.cuh, qdq_4.cuh, qdq_8.cuh beside
it (code minus zero, exact in half for every code and every zero up to 2**bits).

One thread block takes 128 rows of K and walks them in words. For a word and one output column:

- 4 bit: two lanes (even and odd rows), each a chain of four half multiply-adds from +0, one rounding each; the lanes
  are added in float32, a float32 multiply-add with the scale adds that to the block's sum; the block's sum is rounded
  to half at its end.
- 2 and 3 bit: the same two lanes with chains of 8 and 16; the lanes are added in half, a half multiply-add with the
  scale adds that to the block's sum, which is a half throughout.
- 8 bit: the eight products in row order are added in float32; the sum times the scale is rounded to float32, then to
  half, and added in half to the block's sum.

Each block's result is added to the zeroed output by half atomics, whose order the GPU does not fix.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_ROWS = 128
"""Rows of K that one thread block sums before its result is added to the output (BLOCK_KN_SIZE)."""


@dataclass(frozen=True)
class Chain:
    """The shape of one bit width's sums.

    bits: width of a code.
    word: rows of K that are summed before the scale is applied.
    lane: products in one fp16 lane; 0 for 8 bit, which has none.
    group_step: rows between two looks at the group boundary; a group must be a multiple of it.
    columns: vLLM wants out_features to be a multiple of this (the pack factor's numerator).
    fast_rows: rows M of the activation up to which vLLM takes this path; more rows are reconstructed.
    """

    bits: int
    word: int
    lane: int
    group_step: int
    columns: int
    fast_rows: int

    @property
    def largest_code(self) -> int:
        """The largest |code - zero|: a v1 zero can be 2**bits."""
        return 1 << self.bits


CHAINS = {
    2: Chain(bits=2, word=16, lane=8, group_step=16, columns=16, fast_rows=50),
    3: Chain(bits=3, word=32, lane=16, group_step=32, columns=32, fast_rows=50),
    4: Chain(bits=4, word=8, lane=4, group_step=32, columns=8, fast_rows=50),
    8: Chain(bits=8, word=8, lane=0, group_step=32, columns=4, fast_rows=24),
}


def refusal(bits: int, in_features: int, group_size: int, group_step: int | None = None) -> str:
    """Why the kernel cannot multiply K = in_features rows in groups of that size; empty when it can.

    The kernel starts each block of 128 rows at group (block start) // group_size and takes the next group
    group_size rows later, looking only every `group_step` rows (default: the fast path's), so a group must
    be a multiple of that step and must divide 128 or be divided by it, unless there is one group.
    """
    chain = CHAINS.get(bits)
    if chain is None:
        return f"{bits} bit: gptq_gemm knows 2, 3, 4 and 8 bit"
    step = chain.group_step if group_step is None else group_step
    if in_features % 32:
        return f"in_features {in_features} is not a multiple of 32"
    if group_size >= in_features:
        return ""
    if group_size <= 0 or in_features % group_size:
        return f"in_features {in_features} is not a multiple of group_size {group_size}"
    if group_size % step:
        return f"group_size {group_size} is not a multiple of {step}, the rows that the kernel takes in one step"
    if BLOCK_ROWS % group_size and group_size % BLOCK_ROWS:
        return f"group_size {group_size} neither divides the kernel's blocks of 128 rows nor is a multiple of them"
    return ""
