"""A packed linear of random codes, made without ever holding its dequantised weight."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros, unpack_rows
from gptq_diff.models.massive import Plan
from gptq_diff.models.options import QuantFormat
from gptq_diff.models.packed_tensors import group_index
from gptq_diff.models.random_bits import random_words
from gptq_diff.records import LayerSpec

Words = npt.NDArray[np.uint32]


def random_linear(spec: LayerSpec, quant: QuantFormat, plan: Plan, seed: int, gain: float, bias: float) -> PackedLinear:
    """Uniform random codes, scales such that inputs of root mean square 1 give outputs of `gain`.

    The words of qweight are random words: in a bit stream of codes every code is then uniform. Scales vary by a
    quarter either way from group to group. `bias` is the root mean square of the bias, where the layer has one.
    """
    g_idx = group_index(spec, seed)
    words_WN = random_words(seed, f"{spec.name}.qweight", spec.in_features * spec.bits // 32 * spec.out_features)
    words_WN = words_WN.reshape(-1, spec.out_features)
    balance_columns(words_WN, spec.bits, _balanced_columns(spec, quant, seed))
    zeros_GN = _zeros(spec, quant, plan, g_idx.numpy(), seed)
    spread_GN = 0.75 + 0.5 * _uniform(seed, f"{spec.name}.scales", (spec.groups, spec.out_features))
    scales_GN = spread_GN * np.float32(gain / math.sqrt(spec.in_features) / level_rms(quant))
    bias_N = bias * math.sqrt(12) * (_uniform(seed, f"{spec.name}.bias", (spec.out_features,)) - 0.5)
    bias_N[list(plan.zero_columns)] = 0
    _plant(plan, words_WN, scales_GN, zeros_GN, g_idx.numpy(), spec.bits)
    return PackedLinear(
        spec=spec,
        qweight=torch.from_numpy(words_WN.view(np.int32)),
        qzeros=pack_zeros(torch.from_numpy(zeros_GN), spec.bits, spec.format),
        scales=torch.from_numpy(scales_GN).half(),
        g_idx=g_idx,
        bias=torch.from_numpy(bias_N).half() if spec.has_bias else None,
    )


def level_rms(quant: QuantFormat) -> float:
    """The root mean square of code - zero for uniform codes and, when asymmetric, uniform zero points."""
    codes = np.arange(1 << quant.bits)
    zeros = np.array([1 << (quant.bits - 1)]) if quant.sym else np.arange(1, quant.highest_zero + 1)
    return float(np.sqrt(np.mean((codes[:, None] - zeros[None, :]) ** 2.0)))


def put_row(words_WN: Words, row: int, codes_N: Words, bits: int, columns: slice | list[int] = slice(None)) -> None:
    """Overwrite the codes of one row of K, in the given columns, of a packed qweight [K * bits / 32, N]."""
    word, shift = divmod(row * bits, 32)
    mask = (1 << bits) - 1
    kept = np.uint32(~(mask << shift) & 0xFFFFFFFF)
    words_WN[word, columns] = (words_WN[word, columns] & kept) | (codes_N << np.uint32(shift))
    if shift + bits > 32:  # only 3-bit codes cross a word
        over = 32 - shift
        kept = np.uint32(~(mask >> over) & 0xFFFFFFFF)
        words_WN[word + 1, columns] = (words_WN[word + 1, columns] & kept) | (codes_N >> np.uint32(over))


def balance_columns(words_WN: Words, bits: int, columns_N: npt.NDArray[np.bool_]) -> None:
    """Turn every code 0 of the chosen columns into the highest code, in place."""
    full = (1 << bits) - 1
    if 32 % bits:
        codes_KN = unpack_rows(torch.from_numpy(words_WN.view(np.int32)), bits, len(words_WN) * 32 // bits)
        codes_KN[(codes_KN == 0) & torch.from_numpy(columns_N)] = full
        words_WN[:] = pack_rows(codes_KN, bits).numpy().view(np.uint32)
        return
    lowest = np.uint32(0xFFFFFFFF // full)  # the lowest bit of every code
    chosen_N = np.where(columns_N, lowest, np.uint32(0))
    for first in range(0, len(words_WN), 16):  # a few rows at a time stay in the processor's cache
        some_WN = words_WN[first : first + 16]
        used_WN = some_WN.copy()
        for shift in range(1, bits):
            used_WN |= some_WN >> np.uint32(shift)
        some_WN |= (~used_WN & chosen_N) * np.uint32(full)


def _balanced_columns(spec: LayerSpec, quant: QuantFormat, seed: int) -> npt.NDArray[np.bool_]:
    """The columns [N] to be balanced so that the weight's mean over all columns is 0.

    Uniform codes are half a level below the symmetric zero point on average. As an offset common to all columns that
    would grow from linear to linear, by sqrt(K) / 10 each with 4 bits, until it is all that the model computes.
    """
    mean_zero = (1 << (quant.bits - 1)) if quant.sym else (1 + quant.highest_zero) / 2
    full = (1 << quant.bits) - 1
    share = (mean_zero - full / 2) * (full + 1) / full
    balanced: npt.NDArray[np.bool_] = _uniform(seed, f"{spec.name}.balance", (spec.out_features,)) < np.float32(share)
    return balanced


def _zeros(
    spec: LayerSpec, quant: QuantFormat, plan: Plan, g_idx: npt.NDArray[np.int32], seed: int
) -> npt.NDArray[np.int16]:
    """Zero points [G, N]; columns in which something is planted keep the middle one, which has room either way."""
    middle = 1 << (spec.bits - 1)
    if spec.sym:
        return np.full((spec.groups, spec.out_features), middle, dtype=np.int16)
    words = random_words(seed, f"{spec.name}.qzeros", spec.groups * spec.out_features)
    zeros_GN: npt.NDArray[np.int16] = (1 + words % np.uint32(quant.highest_zero)).astype(np.int16)
    zeros_GN = zeros_GN.reshape(spec.groups, spec.out_features)
    with_zeros = g_idx[list(plan.zero_rows)]
    zeros_GN[with_zeros] = zeros_GN[with_zeros].clip(max=(1 << spec.bits) - 1)  # a zero point of 2^bits is no code
    zeros_GN[:, [*plan.zero_columns, *(entry.column for entry in plan.entries)]] = middle
    return zeros_GN


def _plant(
    plan: Plan,
    words_WN: Words,
    scales_GN: npt.NDArray[np.float32],
    zeros_GN: npt.NDArray[np.int16],
    g_idx: npt.NDArray[np.int32],
    bits: int,
) -> None:
    """Zero the plan's rows and columns and put its entries in, in place."""
    middle = 1 << (bits - 1)
    for row in plan.zero_rows:
        put_row(words_WN, row, zeros_GN[g_idx[row]].astype(np.uint32), bits)
    if plan.zero_columns:
        column = torch.full((len(g_idx), 1), middle, dtype=torch.uint8)
        words_WN[:, list(plan.zero_columns)] = pack_rows(column, bits).numpy().view(np.uint32)
    for entry in plan.entries:
        put_row(words_WN, entry.row, np.array([middle + entry.level], dtype=np.uint32), bits, [entry.column])
        scales_GN[g_idx[entry.row], entry.column] = entry.scale


def _uniform(seed: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Random numbers in [0, 1), float32."""
    words = random_words(seed, name, math.prod(shape)) >> np.uint32(8)  # 24 bits: exact in float32
    values: npt.NDArray[np.float32] = words.astype(np.float32) * np.float32(2**-24)
    return values.reshape(shape)
