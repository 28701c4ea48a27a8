"""The compiled loops behind gptq_diff.checkpoint.dequant; importing this needs numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _scaled(
    qweight: NDArray[np.int32], zeros_GN: NDArray[np.int16], scales_GN: NDArray[np.float32],
    group_K: NDArray[np.int64], bits: int, out_KN: NDArray[np.float32], first: int, last: int,
) -> None:  # fmt: skip
    """out_KN[k, n] = float32(code - zero) * scale for the rows first <= k < last."""
    mask = np.int32((1 << bits) - 1)
    for k in range(first, last):
        word = k * bits // 32
        shift = np.int32(k * bits % 32)
        group = group_K[k]
        if shift + bits <= 32:
            for n in range(out_KN.shape[1]):
                code = (qweight[word, n] >> shift) & mask
                out_KN[k, n] = np.float32(np.int32(code - zeros_GN[group, n])) * scales_GN[group, n]
        else:
            low_mask = np.int32((1 << (32 - shift)) - 1)
            for n in range(out_KN.shape[1]):
                low = (qweight[word, n] >> shift) & low_mask
                code = low | ((qweight[word + 1, n] << np.int32(32 - shift)) & mask)
                out_KN[k, n] = np.float32(np.int32(code - zeros_GN[group, n])) * scales_GN[group, n]


def _unscaled(
    qweight: NDArray[np.int32], zeros_GN: NDArray[np.int16], _scales_GN: NDArray[np.float32],
    group_K: NDArray[np.int64], bits: int, out_KN: NDArray[np.int16], first: int, last: int,
) -> None:  # fmt: skip
    """out_KN[k, n] = code - zero for the rows first <= k < last."""
    mask = np.int32((1 << bits) - 1)
    for k in range(first, last):
        word = k * bits // 32
        shift = np.int32(k * bits % 32)
        group = group_K[k]
        if shift + bits <= 32:
            for n in range(out_KN.shape[1]):
                out_KN[k, n] = np.int16((qweight[word, n] >> shift) & mask) - zeros_GN[group, n]
        else:
            low_mask = np.int32((1 << (32 - shift)) - 1)
            for n in range(out_KN.shape[1]):
                low = (qweight[word, n] >> shift) & low_mask
                high = (qweight[word + 1, n] << np.int32(32 - shift)) & mask
                out_KN[k, n] = np.int16(low | high) - zeros_GN[group, n]


def _zeros(qzeros: NDArray[np.int32], bits: int, offset: int, out_GN: NDArray[np.int16]) -> None:
    """out_GN[g, n] = stored zero + offset."""
    mask = (1 << bits) - 1
    for g in range(out_GN.shape[0]):
        for n in range(out_GN.shape[1]):
            word = n * bits // 32
            shift = n * bits % 32
            stream = np.int64(qzeros[g, word]) & 0xFFFFFFFF
            if shift + bits > 32:
                stream |= np.int64(qzeros[g, word + 1]) << 32
            out_GN[g, n] = ((stream >> shift) & mask) + offset


def compile_loops() -> dict[str, Callable[..., None]]:
    """The loops, compiled on first call and kept on disk; without the disk where no cache directory can be written."""

    def compiled(function: Callable[..., None]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return numba.njit(nogil=True)(function)

    return {"scaled": compiled(_scaled), "unscaled": compiled(_unscaled), "zeros": compiled(_zeros)}
