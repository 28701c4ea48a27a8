"""Zero points that carry, against the 32-bit addition that makes them."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.diagnose.hypotheses.zero_points import carried


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_added_to_whole_words_carries(bits: int) -> None:
    """As Python's integers add and cut off after 32 bits."""
    draw = torch.Generator().manual_seed(bits)
    per_word = 32 // bits
    stored = torch.randint(0, 1 << bits, (3, 4 * per_word), generator=draw).to(torch.int16)
    stored[0, :per_word] = (1 << bits) - 1
    ones = sum(1 << (bits * i) for i in range(per_word))
    expected = []
    for row in stored.tolist():
        for start in range(0, len(row), per_word):
            word = sum(value << (bits * i) for i, value in enumerate(row[start : start + per_word]))
            total = (word + ones) % 2**32
            expected += [total >> (bits * i) & ((1 << bits) - 1) for i in range(per_word)]
    assert carried(stored, bits).flatten().tolist() == expected
