"""The oracle: rows of many calls below each other, and the exact product of them."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.compare.exact_answer import exact_product, stack_inputs, stacked

K, N = 600, 24  # more rows of W than are widened at a time


def inputs(kinds: str) -> list[torch.Tensor]:
    """A letter a call: w for one captured as float32, n for one captured as float16."""
    generator = torch.Generator().manual_seed(len(kinds))
    made = [torch.randn(2 + i, K, generator=generator) for i in range(len(kinds))]
    return [x if kind == "w" else x.half() for kind, x in zip(kinds, made)]


@pytest.mark.parametrize("kinds", ["w", "n", "wn", "nw", "wwnn", "wnw", "nwwn", "nwnwn"])
def test_every_row_gets_its_own_product(kinds: str) -> None:
    """Wherever the rows of either kind lie: in one piece, in several, at either end."""
    w_KN = torch.randn(K, N, generator=torch.Generator().manual_seed(99))
    xs = inputs(kinds)
    rows = stack_inputs(xs)
    exact = torch.cat(xs_wide := [x.double() for x in xs]) @ w_KN.double()
    y_MN = exact_product(rows, w_KN)
    assert y_MN.dtype == torch.float32 and y_MN.shape == exact.shape
    first = 0
    for kind, x in zip(kinds, xs_wide):
        part = slice(first, first + len(x))
        first = part.stop
        norm_MN = torch.linalg.vector_norm(x, dim=1, keepdim=True) * torch.linalg.vector_norm(w_KN.double(), dim=0)
        allowed_MN = 1e-6 * norm_MN
        if kind == "w":  # summed in float64, rounded once
            allowed_MN = 2.0**-24 * exact[part].abs() + 1e-14 * norm_MN
        assert bool(((y_MN[part] - exact[part]).abs() <= allowed_MN).all())


def test_stacking_widens_and_keeps_what_was_captured() -> None:
    """Float16 and float32 below each other; zeroing a bad row touches no captured tensor."""
    xs = inputs("nwn")
    xs[1][1, 3] = float("inf")
    xs[2][0, 4] = float("nan")
    before = [x.clone() for x in xs]
    rows = stack_inputs(xs)
    assert rows.wide_M.tolist() == [False] * 2 + [True] * 3 + [False] * 4
    assert rows.finite_M.tolist() == [True] * 3 + [False] + [True] + [False] + [True] * 3
    good = torch.cat([x.float() for x in before])
    good[[3, 5]] = 0.0
    assert torch.equal(rows.x_MK, good)
    assert all(torch.equal(a.nan_to_num(1.0), b.nan_to_num(1.0)) for a, b in zip(xs, before))


def test_matrices_of_other_widths_are_not_stacked() -> None:
    """Not even one of a single column, which could be taken for a number a row."""
    with pytest.raises(RuntimeError, match="izes of tensors must match"):
        stacked([torch.zeros(2, 5), torch.zeros(2, 1)])
