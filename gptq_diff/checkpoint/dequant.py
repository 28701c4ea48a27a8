"""From packed codes to the exact weight: W[k, n] = (code[k, n] - zero[g(k), n]) * scale[g(k), n]."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Callable

import numpy as np
import torch

from gptq_diff.checkpoint.packing import unpack_rows, unpack_zeros, zero_offset, zeros_of_columns

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

_WEIGHTS_PER_THREAD = 4_000_000  # one thread does 6 weights a ns in cache: less than this, and starting one costs more


def dequantise(
    linear: PackedLinear, dtype: torch.dtype = torch.float32, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The weight W[K, N] in `dtype`; exact in float32 and float64, rounded once from the exact value otherwise.

    `out`, contiguous float32 of at least K * N elements, is written instead of fresh memory (whose page faults cost
    more than the arithmetic); the result is then a view of it, unless `dtype` asks for a copy.

    Why float32 is exact: code - zero is an integer of magnitude at most 256, so at most 9 significant bits (255 needs
    8, 256 one), and a float16 scale has 11, a bfloat16 scale 8; the product needs at most 19 of float32's 24. Its
    lowest bit is a multiple of the scale's, at least 2^-24 (float16 subnormals) or 2^-133 (bfloat16's), above
    float32's 2^-149. Only a bfloat16 scale of 2^120 or more can overflow. NaN and infinite scales pass through as
    IEEE arithmetic has them (0 * inf is NaN).
    """
    k, n = linear.spec.in_features, linear.spec.out_features
    if out is None:
        w_KN = torch.empty((k, n), dtype=torch.float32, device=linear.qweight.device)
    else:
        w_KN = out.view(-1)[: k * n].view(k, n)
    if _numba_for(linear) is None:
        torch.mul(unscaled_codes(linear), linear.scales.to(torch.float32)[group_of_row(linear)], out=w_KN)
    else:
        _run_compiled(linear, w_KN, "scaled")
    return w_KN.to(dtype)


def dequantise_columns(linear: PackedLinear, columns_C: torch.Tensor) -> torch.Tensor:
    """float32 [K, C]: the columns columns_C (int64 [C]) of W alone, the same bits as `dequantise` gives."""
    spec = linear.spec
    zeros_GC = zeros_of_columns(linear.qzeros, columns_C, spec.bits, spec.out_features, zero_offset(spec.format))
    group_K = group_of_row(linear)
    codes_KC = unpack_rows(linear.qweight[:, columns_C], spec.bits, spec.in_features).to(torch.int16)
    codes_KC -= zeros_GC[group_K]
    return codes_KC * linear.scales[:, columns_C].to(torch.float32)[group_K]


def unscaled_codes(linear: PackedLinear) -> torch.Tensor:
    """The integers code - zero, int16 [K, N]: what exllama's fast path multiplies before it applies the scale."""
    spec = linear.spec
    if _numba_for(linear) is not None:
        codes_KN = torch.empty((spec.in_features, spec.out_features), dtype=torch.int16)
        _run_compiled(linear, codes_KN, "unscaled")
        return codes_KN
    zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
    return unpack_rows(linear.qweight, spec.bits, spec.in_features).to(torch.int16).sub_(zeros_GN[group_of_row(linear)])


def code_rows(linear: PackedLinear, first: int, last: int) -> torch.Tensor:
    """The integers code - zero of rows first to last - 1 alone, int16; both must be at a border of packed words."""
    spec = linear.spec
    words = slice(first * spec.bits // 32, last * spec.bits // 32)
    if linear.g_idx is None:
        group_R = torch.arange(first, last) // spec.group_size
    else:
        group_R = linear.g_idx[first:last].to(torch.int64)
    low, high = int(group_R.min()), int(group_R.max()) + 1
    zeros_GN = unpack_zeros(linear.qzeros[low:high], spec.bits, spec.out_features, spec.format)
    codes_RN = unpack_rows(linear.qweight[words], spec.bits, last - first).to(torch.int16)
    return codes_RN.sub_(zeros_GN[group_R - low])


def group_of_row(linear: PackedLinear) -> torch.Tensor:
    """The group of every row of W, int64 [K]: g_idx where it is stored and not trivial, else k // group_size."""
    if linear.g_idx is not None:
        return linear.g_idx.to(torch.int64)
    rows = torch.arange(linear.spec.in_features, device=linear.qweight.device)
    return rows // linear.spec.group_size


def dequant_backend() -> str:
    """What runs on the CPU: "numba" (compiled loops) or "torch" (the same bits, several times slower)."""
    return "torch" if _compiled() is None else "numba"


@functools.lru_cache(maxsize=1)
def _compiled() -> dict[str, Callable[..., None]] | None:
    """The compiled loops by name, or None where numba cannot be imported (an engine's own interpreter)."""
    try:
        from gptq_diff.checkpoint import dequant_numba
    except ImportError:
        return None
    return dequant_numba.compile_loops()


def _numba_for(linear: PackedLinear) -> dict[str, Callable[..., None]] | None:
    return _compiled() if linear.qweight.device.type == "cpu" else None


def _run_compiled(linear: PackedLinear, out_KN: torch.Tensor, name: str) -> None:
    """Fill out_KN row by row, the rows split over threads.

    Plain threads rather than numba's own: the loops release the GIL, and numba's fallback thread pool aborts the
    process when two threads of the caller dequantise at once.
    """
    spec = linear.spec
    loops = _compiled()
    assert loops is not None
    scales_GN = linear.scales.to(torch.float32).numpy()
    zeros_GN = np.empty((spec.groups, spec.out_features), dtype=np.int16)
    loops["zeros"](linear.qzeros.numpy(), spec.bits, zero_offset(spec.format), zeros_GN)
    arguments = (linear.qweight.numpy(), zeros_GN, scales_GN, group_of_row(linear).numpy(), spec.bits, out_KN.numpy())
    parts = max(1, min(torch.get_num_threads(), out_KN.numel() // _WEIGHTS_PER_THREAD))
    bounds = [spec.in_features * part // parts for part in range(parts + 1)]
    threads = [
        threading.Thread(target=loops[name], args=(*arguments, first, last))
        for first, last in zip(bounds[1:-1], bounds[2:])
    ]
    for thread in threads:
        thread.start()
    loops[name](*arguments, bounds[0], bounds[1])
    for thread in threads:
        thread.join()
