"""Kernels for the stand-ins of engines beside this file, in numpy; STAND_IN=sound in the environment mends them."""

from __future__ import annotations

import os

import numpy as np
import torch

SOUND = os.environ.get("STAND_IN") == "sound"


def nibbles(words: torch.Tensor) -> np.ndarray:
    """int32 [R, C] to the eight codes of each word, [R * 8, C]."""
    bits = words.numpy().view(np.uint32)
    return np.stack([(bits >> np.uint32(4 * i)) & 15 for i in range(8)], axis=1).reshape(-1, bits.shape[1]).astype(int)


def exact(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One scale per group of rows, groups of equal size."""
    w = codes * np.repeat(scales.astype(np.float64), len(codes) // len(scales), axis=0)
    return (x.astype(np.float64) @ w).astype(np.float16)


def fused(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Four products at a time in a half: even and odd rows of every eight; the rest in float32."""
    if SOUND:
        return exact(x, codes, scales)
    rows = len(codes) // len(scales)
    total = np.zeros((len(x), codes.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(0, len(codes), 8):
            for lane in (0, 1):
                half = np.zeros(total.shape, np.float16)
                for row in range(k + lane, k + 8, 2):
                    half = (half.astype(np.float64) + np.outer(x[:, row].astype(np.float64), codes[row])).astype(
                        np.float16
                    )
                total += half.astype(np.float32) * scales[k // rows].astype(np.float32)
        return total.astype(np.float16)


def reconstructed(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights in half, then a half accumulator over all of K."""
    if SOUND:
        return exact(x, codes, scales)
    w = (codes * np.repeat(scales.astype(np.float64), len(codes) // len(scales), axis=0)).astype(np.float16)
    half = np.zeros((len(x), codes.shape[1]), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(len(w)):
            half = (half.astype(np.float64) + np.outer(x[:, k].astype(np.float64), w[k].astype(np.float64))).astype(
                np.float16
            )
    return half


def by_rows(x: torch.Tensor, codes: np.ndarray, scales: torch.Tensor) -> torch.Tensor:
    """The fused path up to 50 rows, as gptq_gemm and exllama v2 pick it."""
    if os.environ.get("STAND_IN") == "crash":
        raise RuntimeError("the stand-in crashed")
    path = fused if len(x) <= 50 else reconstructed
    return torch.from_numpy(path(x.numpy(), codes, scales.numpy()))
