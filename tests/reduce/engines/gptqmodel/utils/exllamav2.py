"""A stand-in for GPTQModel's exllama_v2 on the CPU: its ops appear when they are asked for, as if compiled."""

from __future__ import annotations

import torch
from arithmetic import by_rows, nibbles

library = torch.library.Library("gptqmodel_exllamav2", "DEF")
weights = {}


def exllamav2_gptq_runtime_available():
    optional = ", ".join(f"Tensor? {name}" for name in ("perm", "inverse", "scale", "scale_max", "groups"))
    library.define(f"make_q_matrix(Tensor weight, {optional}, Tensor? z, Tensor? s, Tensor? g_idx, Tensor room) -> int")
    library.define("gemm_half_q_half(Tensor a, int b, Tensor(a!) c, bool force_cuda=False) -> ()")
    library.impl("make_q_matrix", _make, "CPU")
    library.impl("gemm_half_q_half", _gemm, "CPU")
    return True


def _make(weight, perm, inverse, scale, scale_max, groups, z, s, g_idx, room):
    assert weight.shape[1] % 32 == 0
    assert (g_idx is None) == (len(s) == 1)
    codes, zeros = nibbles(weight), nibbles(z.T.contiguous()).T
    weights[1] = (codes - zeros.repeat(len(codes) // len(zeros), axis=0), s)
    return 1


def _gemm(a, b, c, force_cuda=False):
    c.copy_(by_rows(a, *weights[b]))
