"""The large fp16 chains by group, compared with adding up every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.diagnose.headroom import share_of
from gptq_diff.fix.lanes import large_sums
from tests.kernels.fast_path_cases import draw

WORD = {2: 16, 3: 32, 4: 8}


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_group_that_passes(bits: int, desc_act: bool) -> None:
    """Exactly the groups with a sum above the limit, each with its largest."""
    case = draw(np.random.default_rng(bits), bits, 64, "wild", m=3, k=256, n=32, desc_act=desc_act)
    codes, order = case.unscaled
    x = case.x[:, order].astype(np.float64)
    largest: dict[int, float] = {}
    for start in range(0, 256, WORD[bits]):
        rows = slice(start, start + WORD[bits])
        products = x[:, rows, None] * codes[rows]
        sums = [products[:, :end:2].sum(axis=1) for end in range(1, WORD[bits] + 1, 2)]
        sums += [products[:, 1:end:2].sum(axis=1) for end in range(2, WORD[bits] + 1, 2)]
        if bits != 4:
            sums.append(products.sum(axis=1))
        largest[start // 64] = max([largest.get(start // 64, 0.0), *(float(np.abs(s).max()) for s in sums)])
    limit = sorted(largest.values())[1] * 1.001
    found = large_sums(torch.from_numpy(case.x), share_of(case.linear()), limit)
    assert found == pytest.approx({group: size for group, size in largest.items() if size > limit})
    assert len(found) == 2


def test_eight_bit_has_no_such_chain() -> None:
    case = draw(np.random.default_rng(0), 8, 64, "overflow", m=2, k=128, n=8)
    assert large_sums(torch.from_numpy(case.x), share_of(case.linear()), 1.0) == {}
