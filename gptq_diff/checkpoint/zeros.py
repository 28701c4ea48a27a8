"""Zero points that engines read in different ways, and zero points that do not fit what the config says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.packing import stored_zeros, unpack_zeros

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


def ambiguous_zeros(linear: PackedLinear) -> torch.Tensor:
    """Which zero points are ambiguous, bool [G, N]: stored 2^bits - 1 in v1; never in v2.

    vLLM's exllama takes stored + 1 = 2^bits, which gptq-diff takes as the truth; exllama v1 and AutoGPTQ's old CUDA
    path wrap to 0, which moves the whole group by 2^bits * scale.
    """
    spec = linear.spec
    stored_GN = stored_zeros(linear.qzeros, spec.bits, spec.out_features)
    if spec.format != "gptq":
        return torch.zeros_like(stored_GN, dtype=torch.bool)
    return torch.eq(stored_GN, 2**spec.bits - 1)


def off_centre_zeros(linear: PackedLinear) -> torch.Tensor:
    """Which zero points differ from 2^(bits - 1), bool [G, N]: of a symmetric layer none may.

    Marlin and others leave qzeros unread when the config says sym and assume that value.
    """
    spec = linear.spec
    zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
    return torch.ne(zeros_GN, 2 ** (spec.bits - 1))
