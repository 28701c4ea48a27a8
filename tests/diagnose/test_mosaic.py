"""Two faults in a few columns each, some of which have both: every column is explained by what is wrong with it."""

from __future__ import annotations

import pytest
import torch

from tests.diagnose.build import Made, explained, inputs, make, product


def partly(right: torch.Tensor, wrong: torch.Tensor, group: int, columns: list[int]) -> torch.Tensor:
    mixed = right.clone()
    mixed[group, columns] = wrong[group, columns]
    return mixed


def two_faults(q: Made, low: list[int], other: list[int]) -> torch.Tensor:
    """The weight with zero points of group 3 one too low, and scales of group 1 those of group 0, in some columns."""
    zeros = partly(q.zeros, q.zeros - 1, 3, low)
    return q.weight(zeros=zeros, scales=partly(q.scales, q.scales.roll(1, 0), 1, other))


@pytest.mark.parametrize("seed", range(4))
def test_faults_that_overlap_in_one_column_are_both_named_with_their_groups(seed: int) -> None:
    """Eight columns with the one, three with the other, one of them with both."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False, seed=seed), inputs(28, 128)
    drawn = torch.randperm(256, generator=torch.Generator().manual_seed(seed)).tolist()
    found = explained(product(x, two_faults(q, drawn[:8], drawn[7:10])), x, q)
    assert {f.cause: f.evidence[0][-8:] for f in found} == {"zero-point-shift": "groups 3", "scale-group": "groups 1"}


def test_columns_that_nothing_explains_are_not_put_down_to_what_explains_others() -> None:
    """Five columns with a zero point off by one, four with random codes: no explanation of the whole."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False), inputs(28, 128)
    w = two_faults(q, [3, 30, 60, 90, 120], [])
    w[:, [7, 70, 140, 210]] = w[:, [8, 71, 141, 211]].flip(0)
    found = explained(product(x, w), x, q)
    assert [f.cause for f in found] == ["unknown"]


def test_three_rows_are_too_few_for_columns_to_choose() -> None:
    """Whatever is said of so few rows, no column has been explained by itself."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False), inputs(3, 128)
    w = two_faults(q, [3, 30, 60, 90, 120], [])
    w[:, [7, 70, 140, 210]] = w[:, [8, 71, 141, 211]].flip(0)
    assert {f.cause for f in explained(product(x, w), x, q)} == {"unknown"}
