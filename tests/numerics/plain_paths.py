"""Every path's arithmetic once more, in plain numpy: what the floors are measured against.

Shares nothing with gptq_diff. Halves are multiplied and added in float64, which is exact here, and rounded by numpy's
own conversion to float16.
"""

from __future__ import annotations

import numpy as np


def exact(x_MK, w_KN):
    """Float64."""
    return x_MK.astype(np.float64) @ w_KN.astype(np.float64)


def single(x_MK, w_KN):
    """float32 products added one after the other in float32."""
    y = np.zeros((x_MK.shape[0], w_KN.shape[1]), np.float32)
    for k in range(x_MK.shape[1]):
        y += x_MK[:, k, None].astype(np.float32) * w_KN[None, k].astype(np.float32)
    return y


def single_in_blocks(x_MK, w_KN, block):
    """float32 products and sums; so many rows of K are added up from zero, and then these sums."""
    starts = range(0, x_MK.shape[1], block)
    y, *others = (single(x_MK[:, k : k + block], w_KN[k : k + block]) for k in starts)
    for part in others:
        y += part
    return y


def fp16(x_MK, w_KN):
    """Weights rounded to half, float32 sums, result rounded to half."""
    return single(x_MK, w_KN.astype(np.float16)).astype(np.float16)


def reconstruct(x_MK, w_KN):
    """Weights rounded to half; a half accumulator that takes 16 products at a time."""
    half = w_KN.astype(np.float16).astype(np.float64)
    x = x_MK.astype(np.float64)
    y = np.zeros((x.shape[0], half.shape[1]), np.float16)
    for k in range(0, x.shape[1], 16):
        y = (y.astype(np.float64) + x[:, k : k + 16] @ half[k : k + 16]).astype(np.float16)
    return y


def _lanes(x, q, word, lanes=2):
    sums = []
    for lane in range(lanes):
        s = np.zeros((x.shape[0], q.shape[1]), np.float16)
        for k in range(lane, word, lanes):
            s = (s.astype(np.float64) + x[:, k, None] * q[None, k]).astype(np.float16)
        sums.append(s.astype(np.float64))
    return sums


def fast(x_MK, q_KN, scale_GN, group, bits):
    """exllama's fused kernel by facts.md, section 1; blocks added in ascending order."""
    x = x_MK.astype(np.float64)
    word = {4: 8, 2: 16, 3: 32, 8: 8}[bits]
    y = np.zeros((x.shape[0], q_KN.shape[1]), np.float16)
    for block in range(0, x.shape[1], 128):
        total = np.zeros(y.shape, np.float32 if bits == 4 else np.float16)
        for k in range(block, min(block + 128, x.shape[1]), word):
            s = scale_GN[k // group].astype(np.float64)
            xs, qs = x[:, k : k + word], q_KN[k : k + word].astype(np.float64)
            if bits == 8:
                add = ((xs @ qs).astype(np.float32) * s.astype(np.float32)).astype(np.float16)
                total = (total.astype(np.float64) + add.astype(np.float64)).astype(np.float16)
                continue
            a, b = _lanes(xs, qs, word)
            if bits == 4:
                total = (total + (a + b).astype(np.float32) * s).astype(np.float32)
            else:
                total = (total + (a + b).astype(np.float16).astype(np.float64) * s).astype(np.float16)
        y = (y.astype(np.float64) + total.astype(np.float16).astype(np.float64)).astype(np.float16)
    return y


def exllama_v1(x_MK, q_KN, scale_GN, group, block=256):
    """exllama v1's fused kernel (AutoGPTQ v0.7.1, matrix.cuh): lanes of halves all the way, then atomics."""
    x, out = x_MK.astype(np.float64), np.zeros((x_MK.shape[0], q_KN.shape[1]), np.float16)
    for first in range(0, x.shape[1], block):
        lanes = [np.zeros(out.shape, np.float16) for _ in range(2)]
        for k in range(first, min(first + block, x.shape[1]), 8):
            chains = _lanes(x[:, k : k + 8], q_KN[k : k + 8].astype(np.float64), 8)
            scale = scale_GN[k // group].astype(np.float64)
            lanes = [(lane + chain * scale).astype(np.float16) for lane, chain in zip(lanes, chains)]
        total = (lanes[0].astype(np.float64) + lanes[1]).astype(np.float16)
        out = (out.astype(np.float64) + total).astype(np.float16)
    return out


def int4pack(x_MK, codes_KN, zeros_GN, scale_GN, group):
    """torch's int4pack product: (code - 8) * scale + half((8 - zero) * scale) in float32, y rounded to half."""
    offset_GN = ((8 - zeros_GN).astype(np.float16) * scale_GN).astype(np.float16)
    scale, offset = (np.repeat(t.astype(np.float32), group, axis=0) for t in (scale_GN, offset_GN))
    return single(x_MK, (codes_KN - 8).astype(np.float32) * scale + offset).astype(np.float16)
