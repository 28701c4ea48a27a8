"""Two faults in one linear, in some columns or in all: every column is explained by what is wrong with it."""

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


def test_three_rows_do_not_explain_columns_by_chance() -> None:
    """Whatever is said of so few rows, no column has been explained by itself."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False), inputs(3, 128)
    w = two_faults(q, [3, 30, 60, 90, 120], [])
    w[:, [7, 70, 140, 210]] = w[:, [8, 71, 141, 211]].flip(0)
    assert {f.cause for f in explained(product(x, w), x, q)} == {"unknown"}


def columns_of(right: torch.Tensor, wrong: torch.Tensor, columns: list[int]) -> torch.Tensor:
    mixed = right.clone()
    mixed[:, columns] = wrong[:, columns]
    return mixed


@pytest.mark.parametrize("rows", [3, 6, 37])
def test_columns_with_either_of_two_faults_are_told_apart_with_few_rows_too(rows: int) -> None:
    """Two columns with backward words, three others with scales of the group before."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32), inputs(rows, 128)
    backward = q.weight(codes=q.codes.reshape(-1, 8, 256).flip(1).reshape(128, 256))
    w = columns_of(q.weight(), backward, [3, 90])
    w = columns_of(w, q.weight(scales=q.scales.roll(1, 0)), [40, 130, 200])
    assert {f.cause for f in explained(product(x, w), x, q)} == {"nibble-order", "scale-group"}


def test_a_mild_fault_in_few_columns_is_told_beneath_a_gross_one_in_all() -> None:
    """Every word backwards, and three columns whose results were rounded to bfloat16: told by their bits."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32), inputs(29, 128)
    y = product(x, q.weight(codes=q.codes.reshape(-1, 8, 256).flip(1).reshape(128, 256)))
    found = explained(columns_of(y, y.bfloat16().half(), [3, 90, 200]), x, q)
    assert [f.cause for f in found] == ["nibble-order", "dtype"]
    assert found[1].evidence[0] == "beneath the above, in 3 columns"


def test_a_gross_fault_in_few_columns_is_told_above_a_mild_one_in_all() -> None:
    """bfloat16 scales everywhere, backward words in two columns, with too few rows for columns to choose."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32), inputs(6, 128)
    scales = q.scales.bfloat16().float()
    backward = q.weight(codes=q.codes.reshape(-1, 8, 256).flip(1).reshape(128, 256), scales=scales)
    w = columns_of(q.weight(scales=scales), backward, [3, 90])
    assert {f.cause for f in explained(product(x, w), x, q)} == {"nibble-order", "dtype"}


def test_weights_in_bfloat16_do_not_hide_codes_in_another_order_in_one_column() -> None:
    """Rounding the weight comes after what makes it."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32), inputs(18, 128)
    backward = q.weight(codes=q.codes.reshape(-1, 8, 256).flip(1).reshape(128, 256))
    w = columns_of(q.weight(), backward, [77]).bfloat16().float()
    found = explained((x.float() @ w).half(), x, q)
    assert {f.cause for f in found} == {"nibble-order", "dtype"}


def test_two_faults_that_each_make_matters_worse_alone_are_found_together() -> None:
    """g_idx ignored and every zero point one too low, five rows, each undoing nothing of the error by itself."""
    q = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False, desc_act=True)
    x = inputs(5, 128)
    w = q.weight(group=torch.arange(128) // 32, zeros=q.zeros - 1)
    assert {f.cause for f in explained(product(x, w), x, q)} == {"g-idx-ignored", "zero-point-shift"}


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_some_columns_stays_unknown(seed: int) -> None:
    """Whatever is tried on columns apart and in pairs: random errors are put down to nothing."""
    q, x = make("model.layers.0.mlp.up_proj", 256, rows=128, group_size=32, sym=False, seed=seed), inputs(12, 128)
    y = product(x, q.weight()).float()
    g = torch.Generator().manual_seed(seed)
    columns = torch.randperm(256, generator=g)[: 4 + 20 * seed]
    y[:, columns] += torch.randn(12, len(columns), generator=g) * 0.05 * y.square().mean().sqrt()
    assert [f.cause for f in explained(y.half(), x, q)] == ["unknown"]
