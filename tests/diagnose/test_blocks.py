"""Which blocks of K went wrong: found although they do alike, undo each other, or do nothing."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.diagnose.blocks import BlockSearch


def deltas(blocks: int, scale: float = 1.0) -> torch.Tensor:
    """[B, M, C] for 40 rows and 10 columns."""
    return torch.randn(blocks, 40, 10, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("by_column", [True, False])
def test_blocks_that_undo_each_other_are_found(by_column: bool) -> None:
    """Each alone makes it worse, together they are the whole error; least squares sees it."""
    parts = deltas(4)
    parts[1] = -0.95 * parts[0] + 0.1 * parts[1]
    gap = parts[0] + parts[1]
    choices = BlockSearch(gap, [parts], torch.full((10,), 1e-6).double(), by_column=by_column).run(1.6)
    best = min(choices, key=lambda c: float(c.gap2_C.sum()))
    assert best.blocks == (0, 1)
    assert float(best.gap2_C.sum()) < 1e-6


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e12])
def test_alike_blocks_and_idle_ones_do_no_harm(scale: float, by_column: bool) -> None:
    """Two that do the very same, one that does nothing, two variants that are one; whatever their size."""
    parts = deltas(6, scale)
    parts[1], parts[2] = parts[0], 0.0
    gap = parts[0] + parts[3]
    for choice in BlockSearch(gap, [parts, parts], torch.ones(10).double(), by_column=by_column).run(1.6):
        assert bool(torch.isfinite(choice.gap2_C).all())
        assert float(choice.gap2_C.sum()) <= 1e-6 * float(gap.double().square().sum())
