"""The chains as a GPU looks for them: the same sum as the CPU's search finds, however few are taken at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.diagnose.headroom import chains_there, share_of
from gptq_diff.diagnose.headroom.chains_there import chain_sums_there
from gptq_diff.diagnose.headroom.unscaled import chain_sums
from tests.kernels.fast_path_cases import draw


@pytest.mark.parametrize("together", [1, 2000, 2**24], ids=["a chain", "some", "all"])
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("regime", ["ordinary", "overflow", "wild"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_sum_that_the_cpu_finds(
    monkeypatch: pytest.MonkeyPatch, seed: int, regime: str, desc_act: bool, together: int
) -> None:
    """Value, place and the product that carries it, unless two sums are equally large: then the value."""
    monkeypatch.setattr(chains_there, "TOGETHER", together)
    case = draw(np.random.default_rng(seed), 4, 64, regime, m=5, k=256, n=40, desc_act=desc_act)
    x_MK = torch.from_numpy(case.x).half()
    x_MK = x_MK[torch.isfinite(x_MK).all(dim=1)]
    share = share_of(case.linear())
    ours, theirs = chain_sums_there(x_MK, share), chain_sums(x_MK, share)
    assert ours is not None
    assert theirs is not None
    assert abs(ours.value) == abs(theirs.value)
    if (ours.row, ours.column, ours.terms) == (theirs.row, theirs.column, theirs.terms):
        assert ours == theirs


def test_a_massive_activation_ends_the_search_after_the_first_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other chain can pass it: of 16 times as many only those of the first batch are multiplied."""
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=8, k=256, n=64)
    x_MK = torch.from_numpy(case.x).half()
    x_MK[3, 77] = 20000.0
    share = share_of(case.linear())
    monkeypatch.setattr(chains_there, "TOGETHER", 8 * 4 * 64)
    seen = []
    cumsum = torch.Tensor.cumsum_
    monkeypatch.setattr(torch.Tensor, "cumsum_", lambda self, dim: (seen.append(len(self)), cumsum(self, dim))[1])
    found = chain_sums_there(x_MK, share)
    assert found is not None
    assert (found.row, found.channel, found.activation) == (3, 77, 20000.0)
    assert sum(seen) <= 9


def test_all_zero_has_no_nearest_sum() -> None:
    case = draw(np.random.default_rng(0), 4, 64, "ordinary", m=2, k=128, n=8)
    assert chain_sums_there(torch.zeros(2, 128, dtype=torch.float16), share_of(case.linear())) is None
