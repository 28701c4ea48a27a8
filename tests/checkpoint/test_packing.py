"""Packing against a bit-by-bit writer that knows nothing of lanes, words or numpy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.checkpoint.packing import pack_rows, pack_zeros, stored_zeros, unpack_rows, unpack_zeros, words_for
from gptq_diff.errors import CheckpointError
from tests.checkpoint.build import pack_columns, pack_lines

BITS = st.sampled_from([2, 3, 4, 8])


@st.composite
def code_matrices(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    bits = draw(BITS)
    period = {2: 16, 3: 32, 4: 8, 8: 4}[bits]
    k = period * draw(st.integers(1, 3))
    n = draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=n, max_size=n)
    return bits, draw(st.lists(row, min_size=k, max_size=k))


@given(code_matrices())
@settings(max_examples=80, deadline=None)
def test_rows_are_a_bit_stream_along_k(case: tuple[int, list[list[int]]]) -> None:
    """pack_rows writes the words that the scalar writer writes, and unpack_rows reads the codes back from them."""
    bits, codes = case
    codes_KN = torch.tensor(codes, dtype=torch.uint8)
    expected = pack_columns(codes, bits)
    packed = pack_rows(codes_KN, bits)
    assert packed.dtype == torch.int32
    assert torch.equal(packed, expected)
    unpacked = unpack_rows(expected, bits, len(codes))
    assert unpacked.dtype == torch.uint8
    assert torch.equal(unpacked, codes_KN)


@given(code_matrices(), st.sampled_from(["gptq", "gptq_v2"]))
@settings(max_examples=80, deadline=None)
def test_zeros_are_a_bit_stream_along_n(case: tuple[int, list[list[int]]], fmt: str) -> None:
    """v1 stores zero - 1 and reads 2^b from all ones; v2 stores the zero; both go there and back over all values."""
    bits, columns = case
    stored = [list(row) for row in zip(*columns)]
    offset = 1 if fmt == "gptq" else 0
    true_GN = torch.tensor(stored, dtype=torch.int16) + offset
    expected = pack_lines(stored, bits)
    assert torch.equal(pack_zeros(true_GN, bits, fmt), expected)
    unpacked = unpack_zeros(expected, bits, len(columns), fmt)
    assert unpacked.dtype == torch.int16
    assert torch.equal(unpacked, true_GN)
    assert torch.equal(stored_zeros(expected, bits, len(columns)), true_GN - offset)


def test_three_bit_codes_10_and_21_straddle_words_as_autogptq_writes_them() -> None:
    """Code 10 is two bits of word 0 and one of word 1; code 21 one bit of word 1 and two of word 2."""
    for code, words in ((10, [0b11 << 30, 0b1, 0]), (21, [0, 1 << 31, 0b11])):
        codes = torch.zeros(32, 1, dtype=torch.uint8)
        codes[code] = 7
        assert [word & 0xFFFFFFFF for word in pack_rows(codes, 3).flatten().tolist()] == words


@pytest.mark.parametrize(("bits", "codes"), [(4, 12), (3, 30), (3, 40), (2, 8), (8, 2), (4, 0)])
def test_padding_is_refused_with_its_reason(bits: int, codes: int) -> None:
    """Codes that would leave a word half empty are refused, because engines pad in different ways."""
    with pytest.raises(CheckpointError, match=f"{codes} codes of {bits} bits do not fill whole 32-bit words"):
        words_for(codes, bits)


def test_what_does_not_fit_is_refused() -> None:
    """Bits that GPTQ does not pack, codes beyond the bits, v1's zero 0, a wrong word count, an unknown format."""
    codes = torch.zeros(32, 8, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="5-bit packing is not supported"):
        pack_rows(codes, 5)
    with pytest.raises(CheckpointError, match="outside 0 to 15"):
        pack_rows(codes + 16, 4)
    with pytest.raises(CheckpointError, match="outside 1 to 16"):
        pack_zeros(codes, 4, "gptq")
    with pytest.raises(CheckpointError, match="outside 0 to 15"):
        pack_zeros(codes + 16, 4, "gptq_v2")
    with pytest.raises(CheckpointError, match="do not hold 64 rows"):
        unpack_rows(torch.zeros(4, 8, dtype=torch.int32), 4, 64)
    with pytest.raises(CheckpointError, match="'marlin' is not one of"):
        unpack_zeros(torch.zeros(1, 1, dtype=torch.int32), 4, 8, "marlin")
