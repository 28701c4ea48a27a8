"""A stand-in for vLLM's operations on the CPU; STAND_IN_RELEASE picks the signature: 0.5, 0.20 or 0.33."""

from __future__ import annotations

import os

import torch
from arithmetic import by_rows, nibbles

RELEASE = os.environ.get("STAND_IN_RELEASE", "0.20")
G_IDX = "" if RELEASE == "0.33" else "Tensor b_g_idx, "
V2 = "" if RELEASE == "0.5" else "bool use_v2_format, "
PERM = "" if RELEASE == "0.33" else "Tensor q_perm, "

library = torch.library.Library("_C", "DEF")
library.define(
    "gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, "
    f"{G_IDX}bool use_exllama, {V2}int bit) -> Tensor"
)
library.define(f"gptq_shuffle(Tensor(a!) q_weight, {PERM}int bit) -> ()")


def _gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, *rest):
    v2 = RELEASE != "0.5" and rest[-2]
    assert rest[-1] == 4
    zeros = nibbles(b_gptq_qzeros.T.contiguous()).T + (not v2)
    codes = nibbles(b_q_weight ^ 0x5A5A5A5A)  # only what was shuffled reads right
    return by_rows(a, codes - zeros.repeat(len(codes) // len(zeros), axis=0), b_gptq_scales)


library.impl("gptq_gemm", _gemm, "CPU")


def _mark(q_weight, *rest):
    q_weight.bitwise_xor_(0x5A5A5A5A)


library.impl("gptq_shuffle", _mark, "CPU")


def gptq_marlin_repack(b_q_weight, size_k, size_n, num_bits, **rest):
    """As it is: the stand-in's Marlin reads the checkpoint's layout."""
    assert b_q_weight.shape == (size_k // 8, size_n)
    return b_q_weight
