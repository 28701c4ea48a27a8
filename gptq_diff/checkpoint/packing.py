"""How GPTQ stores integers: codes of `bits` bits, one after the other, in the bits of int32 words.

`qweight` packs along K, `qzeros` along N, both as one continuous little-endian bit stream: code i takes the bits
i * bits to (i + 1) * bits - 1, bit 0 being the lowest bit of word 0. For 2, 4 and 8 bits no code crosses a word.
For 3 bits 32 codes fill 3 words, and codes 10 and 21 straddle: code 10 puts two bits on top of word 0 and one at the
bottom of word 1, code 21 one on top of word 1 and two at the bottom of word 2. That is the layout which AutoGPTQ's
`QuantLinear.pack` writes with its hand-unrolled shifts (10 codes, 2 + 1 bits, 10 codes, 1 + 2 bits, 10 codes):
https://github.com/AutoGPTQ/AutoGPTQ/blob/v0.7.1/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
"""

from __future__ import annotations

import math

import numpy as np
import torch

from gptq_diff.errors import CheckpointError

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


def codes_per_period(bits: int) -> int:
    """The number of codes after which the stream is at a word border again: 16, 32, 8, 4 for 2, 3, 4, 8 bits."""
    if bits not in BITS:
        raise CheckpointError(f"{bits}-bit packing is not supported: GPTQ packs 2, 3, 4 or 8 bits into int32 words")
    return 32 // math.gcd(bits, 32)


def words_for(codes: int, bits: int) -> int:
    """The number of int32 words that `codes` codes fill; refused where they do not fill the last one."""
    if codes <= 0 or codes % codes_per_period(bits):
        raise CheckpointError(
            f"{codes} codes of {bits} bits do not fill whole 32-bit words (a multiple of {codes_per_period(bits)} "
            "would), and engines pad such weights in different ways; use a layer size that fits"
        )
    return codes * bits // 32


def pack_rows(codes_KN: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes [K, N] (any integer dtype, 0 to 2^bits - 1) as qweight, int32 [K * bits / 32, N]."""
    k_total, n_total = codes_KN.shape
    words = words_for(k_total, bits)
    if codes_KN.numel() and not 0 <= int(codes_KN.min()) <= int(codes_KN.max()) < 2**bits:
        raise CheckpointError(f"a code lies outside 0 to {2**bits - 1}, which {bits} bits cannot hold")
    period = codes_per_period(bits)
    codes = codes_KN.cpu().numpy().reshape(k_total // period, period, n_total)
    packed = np.zeros((k_total // period, words * period // k_total, n_total), dtype=np.uint32)
    for lane in range(period):
        word, shift = divmod(lane * bits, 32)
        code = codes[:, lane].astype(np.uint32)
        packed[:, word] |= code << np.uint32(shift)
        if shift + bits > 32:
            packed[:, word + 1] |= code >> np.uint32(32 - shift)
    return torch.from_numpy(packed.reshape(words, n_total).view(np.int32))


def unpack_rows(qweight: torch.Tensor, bits: int, in_features: int) -> torch.Tensor:
    """The codes of qweight, int32 [K * bits / 32, N], as uint8 [K, N]; works on any device."""
    if qweight.shape[0] != words_for(in_features, bits):
        raise CheckpointError(
            f"{qweight.shape[0]} word rows do not hold {in_features} rows of {bits}-bit codes "
            f"({words_for(in_features, bits)} would)"
        )
    period = codes_per_period(bits)
    words_WPN = qweight.reshape(in_features // period, period * bits // 32, -1)
    codes = torch.empty((in_features // period, period, qweight.shape[1]), dtype=torch.uint8, device=qweight.device)
    mask = 2**bits - 1
    for lane in range(period):
        word, shift = divmod(lane * bits, 32)
        if shift + bits <= 32:
            codes[:, lane] = (words_WPN[:, word] >> shift) & mask
        else:  # the shift is arithmetic: the sign must not leak into the upper part, so the low part is masked first
            low = (words_WPN[:, word] >> shift) & (2 ** (32 - shift) - 1)
            codes[:, lane] = low | ((words_WPN[:, word + 1] << (32 - shift)) & mask)
    return codes.reshape(in_features, -1)


def pack_zeros(zeros_GN: torch.Tensor, bits: int, format: str) -> torch.Tensor:  # noqa: A002  the checkpoint's own word
    """True zero points [G, N] as qzeros, int32 [G, N * bits / 32].

    "gptq" (v1) stores zero - 1 and so takes 1 to 2^bits; "gptq_v2" stores the zero itself and takes 0 to 2^bits - 1.
    """
    offset = zero_offset(format)
    low, high = offset, 2**bits - 1 + offset
    if zeros_GN.numel() and not low <= int(zeros_GN.min()) <= int(zeros_GN.max()) <= high:
        raise CheckpointError(f"a zero point lies outside {low} to {high}, which is what {bits}-bit {format} can store")
    return pack_rows((zeros_GN.to(torch.int16) - offset).T.contiguous(), bits).T.contiguous()


def stored_zeros(qzeros: torch.Tensor, bits: int, out_features: int) -> torch.Tensor:
    """The zero points as stored, before the format's offset: int16 [G, N] from qzeros, int32 [G, N * bits / 32]."""
    return unpack_rows(qzeros.T, bits, out_features).T.to(torch.int16).contiguous()


def unpack_zeros(qzeros: torch.Tensor, bits: int, out_features: int, format: str) -> torch.Tensor:  # noqa: A002
    """The true zero points, int16 [G, N]: stored + 1 in v1 (2^bits included, as vLLM reads it), stored in v2."""
    return stored_zeros(qzeros, bits, out_features) + zero_offset(format)


def zeros_of_columns(
    qzeros: torch.Tensor, columns_C: torch.Tensor, bits: int, columns: int, offset: int
) -> torch.Tensor:
    """The true zero points of some columns alone, int16 [G, C].

    columns_C: int64. columns: N. offset: `zero_offset` of the format.
    """
    if 32 % bits:  # 3-bit codes can cross a word
        return stored_zeros(qzeros, bits, columns)[:, columns_C] + offset
    shift_C = (columns_C * bits % 32).to(torch.int32)
    stored_GC: torch.Tensor = (qzeros[:, columns_C * bits // 32] >> shift_C) & (2**bits - 1)
    return stored_GC.to(torch.int16) + offset


def zero_offset(format: str) -> int:  # noqa: A002
    """What is added to a stored zero point to get the true one: 1 for "gptq" (v1), 0 for "gptq_v2"."""
    if format not in FORMATS:
        raise CheckpointError(f"the checkpoint format {format!r} is not one of {', '.join(FORMATS)}")
    return 1 if format == "gptq" else 0
