"""Every hypothesis: a product made wrong by a plain formula is put down to its cause, and to no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.diagnose.build import Made, explained, inputs, make, product

Wrong = Callable[[Made, torch.Tensor], torch.Tensor]


def reverse_words(codes: torch.Tensor) -> torch.Tensor:
    return codes.reshape(-1, 8, codes.shape[1]).flip(1).reshape(codes.shape)


def one_group(values: torch.Tensor, group: int, columns: slice, by: int) -> torch.Tensor:
    changed = values.clone()
    changed[group, columns] += by
    return changed


def times(values: torch.Tensor, by: dict[int, float], columns: slice) -> torch.Tensor:
    changed = values.clone()
    for group, factor in by.items():
        changed[group, columns] *= factor
    return changed


def exchanged(values: torch.Tensor, a: int, b: int) -> torch.Tensor:
    changed = values.clone()
    changed[[a, b]] = changed[[b, a]]
    return changed


def without_slices(q: Made, x: torch.Tensor) -> torch.Tensor:
    y = product(x, q.weight())
    late = product(x[:, 256:], q.weight()[256:])
    y[:, 64:128] = late[:, 64:128]
    return y


def brain_input(q: Made, x: torch.Tensor, columns: list[int]) -> torch.Tensor:
    y = product(x, q.weight())
    y[:, columns] = product(x.bfloat16().half(), q.weight())[:, columns]
    return y


def in_columns(q: Made, x: torch.Tensor, columns: slice, factor: float) -> torch.Tensor:
    y = product(x, q.weight()).float()
    y[:, columns] *= factor
    return y.half()


SINGLE: dict[str, tuple[str, Wrong]] = {
    "all zero points one too low": ("zero-point-shift", lambda q, x: product(x, q.weight(zeros=q.zeros - 1))),
    "all zero points one too high": ("zero-point-shift", lambda q, x: product(x, q.weight(zeros=q.zeros + 1))),
    "zero points of a group in every seventh column": (
        "zero-point-shift", lambda q, x: product(x, q.weight(zeros=one_group(q.zeros, 3, slice(0, None, 7), 1))),
    ),
    "one zero point": (
        "zero-point-shift", lambda q, x: product(x, q.weight(zeros=one_group(q.zeros, 5, slice(9, 10), -1))),
    ),
    "scales of the group before": ("scale-group", lambda q, x: product(x, q.weight(scales=q.scales.roll(1, 0)))),
    "scales of one group a twentieth too large": (
        "scale-group", lambda q, x: product(x, q.weight(scales=times(q.scales, {3: 1.05}, slice(None)))),
    ),
    "scales of two groups wrong in every fifth column": (
        "scale-group", lambda q, x: product(x, q.weight(scales=times(q.scales, {0: 0.5, 6: 1.01}, slice(0, None, 5)))),
    ),
    "scales of two groups exchanged": (
        "scale-group", lambda q, x: product(x, q.weight(scales=exchanged(q.scales, 2, 6))),
    ),
    "groups twice as long": ("scale-group", lambda q, x: product(x, q.weight(group=torch.arange(512) // 128))),
    "codes of a word from the last to the first": (
        "nibble-order", lambda q, x: product(x, q.weight(codes=reverse_words(q.codes))),
    ),
    "columns in rolled shards": ("shard-order", lambda q, x: product(x, q.weight().roll(256, 1))),
    "rows in rolled shards": ("shard-order", lambda q, x: product(x, q.weight().roll(128, 0))),
    "a bias that does not belong there": (
        "bias", lambda q, x: (product(x, q.weight()).float() + q.linear.bias.float()).half(),  # type: ignore[union-attr]
    ),
    "bfloat16 scales": ("dtype", lambda q, x: product(x, q.weight(scales=q.scales.bfloat16().float()))),
    "bfloat16 weights": ("dtype", lambda q, x: (x.float() @ q.weight().bfloat16().float()).half()),
    "a bfloat16 input": ("dtype", lambda q, x: product(x.bfloat16().half(), q.weight())),
    "a bfloat16 input in three columns": ("dtype", lambda q, x: brain_input(q, x, [7, 130, 300])),
    "a bfloat16 result": ("dtype", lambda q, x: product(x, q.weight()).bfloat16().half()),
    "values cut off": ("clamp", lambda q, x: product(x, q.weight()).clamp(-3, 3)),
    "slices of K lost in some columns": ("race-or-uninitialised", without_slices),
    "a common factor in some columns": ("unknown", lambda q, x: in_columns(q, x, slice(0, 40), 1.01)),
    "a common factor": ("unknown", lambda q, x: (product(x, q.weight()).float() * 1.05).half()),
}  # fmt: skip


@pytest.mark.parametrize("sym", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("what", list(SINGLE))
def test_a_single_cause_is_named_and_no_other(what: str, sym: bool) -> None:
    """37 rows, 512 columns of which the fault may touch few."""
    cause, wrong = SINGLE[what]
    q, x = make("model.layers.0.self_attn.q_proj", 512, sym=sym), inputs(37)
    assert [f.cause for f in explained(wrong(q, x), x, q)] == [cause]


@pytest.mark.parametrize("what", ["all zero points one too low", "scales of the group before", "bfloat16 weights"])
def test_one_row_is_enough_for_what_touches_all_columns(what: str) -> None:
    """As in a decode step."""
    cause, wrong = SINGLE[what]
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(1)
    assert [f.cause for f in explained(wrong(q, x), x, q)] == [cause]


@pytest.mark.parametrize("factor", [1.007, 1.01, 1.02])
def test_one_row_times_a_number_is_no_choice_of_groups(factor: float) -> None:
    """Of nine groups some choice of neighbours' scales and zero points comes near to it in every column."""
    q = make("model.layers.0.self_attn.q_proj", 576, rows=576)
    x = torch.randn(1, 576, generator=torch.Generator().manual_seed(0)).half()
    y = (product(x, q.weight()).float() * factor).half()
    (found,) = explained(y, x, q, path="exllama-reconstruct")
    assert found.cause == "unknown"
    assert any(f"the exact answer times {factor}" in line for line in found.evidence)


def test_two_causes_in_one_product_are_both_named() -> None:
    """Codes taken backwards and zero points off by one: neither alone explains y."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(37)
    y = product(x, q.weight(codes=reverse_words(q.codes), zeros=q.zeros - 1))
    assert {f.cause for f in explained(y, x, q)} == {"nibble-order", "zero-point-shift"}


def test_q_read_where_k_lies_is_an_order_of_shards() -> None:
    """A fused product laid out as k, v, q and read as q, k, v."""
    q, k, v = (make(n, size, seed=i) for i, (n, size) in enumerate([("q_proj", 512), ("k_proj", 256), ("v_proj", 256)]))
    x = inputs(37)
    laid = torch.cat([k.weight(), v.weight(), q.weight()], dim=1)
    found = explained(product(x, laid[:, :512]), x, q, (q, k, v))
    assert [f.cause for f in found] == ["shard-order"]
    assert "k, v, q lie" in found[0].summary


@pytest.mark.parametrize("rows", [37, 1])
def test_g_idx_ignored_and_misapplied(rows: int) -> None:
    """desc_act: groups by place and not by g_idx; rows of W sorted by group while x is not."""
    d, x = make("model.layers.0.self_attn.o_proj", 512, desc_act=True), inputs(rows)
    ignored = product(x, d.weight(group=torch.arange(512) // 64))
    unsorted = product(x, d.weight()[torch.argsort(d.group, stable=True)])
    assert [f.cause for f in explained(ignored, x, d)] == ["g-idx-ignored"]
    assert [f.cause for f in explained(unsorted, x, d)] == ["g-idx-ignored"]


def test_a_zero_that_wraps_is_ambiguous() -> None:
    """A stored 15 read as 0, not as 16."""
    d, x = make("model.layers.0.mlp.down_proj", 512, sym=False), inputs(37)
    zeros = torch.where(d.zeros == 15, 16, d.zeros)
    from gptq_diff.checkpoint.packing import pack_zeros

    d.linear = type(d.linear)(**{**vars(d.linear), "qzeros": pack_zeros(zeros, 4, "gptq")})
    d.zeros = zeros
    found = explained(product(x, d.weight(zeros=torch.where(zeros == 16, 0, zeros))), x, d)
    assert [f.cause for f in found] == ["ambiguous-zero"]


def test_unknown_says_what_was_ruled_out_and_what_is_known() -> None:
    """A factor of 1.05 is no cause of the list, but it is told."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(37)
    (found,) = explained((product(x, q.weight()).float() * 1.05).half(), x, q)
    text = "\n".join(found.evidence)
    assert "1.05" in text
    assert "zero-point-shift" in text
    assert found.confidence < 0.5


def test_evidence_holds_figures() -> None:
    """What is left of the error, and how many columns err."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(37)
    (found,) = explained(product(x, q.weight(zeros=one_group(q.zeros, 3, slice(0, None, 7), 1))), x, q)
    assert "in groups 3" in found.evidence[0]
    assert "74 of 512 columns err" in "\n".join(found.evidence)


def test_slices_are_told_with_the_size_that_was_looked_at() -> None:
    """32 rows of K where K is short, and 128 else; here rows 0 to 255 were lost."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(37)
    (found,) = explained(without_slices(q, x), x, q)
    assert "in slices of 32 rows 0, 1, 2, 3, 4, 5, 6, 7" in found.evidence[0]


def test_a_factor_of_a_groups_scales_is_told_with_its_size() -> None:
    """Group 3, 1.05 times; and a factor that all groups share is none of a group."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(37)
    (found,) = explained(product(x, q.weight(scales=times(q.scales, {3: 1.05}, slice(None)))), x, q)
    assert "multiplied by 1.05 in group 3" in found.evidence[0]
    (other,) = explained(in_columns(q, x, slice(0, 40), 1.01), x, q)
    assert other.cause == "unknown" and "1.01" in "\n".join(other.evidence)


@pytest.mark.parametrize("rows", [1, 5])
def test_factors_of_groups_are_not_read_out_of_a_few_wrong_words(rows: int) -> None:
    """Three columns with other codes where the massive activation is: a factor a group would fit them, by chance."""
    q, x = make("model.layers.0.self_attn.q_proj", 512), inputs(rows)
    codes = q.codes.clone()
    codes[96:104, :3] = 15 - codes[96:104, :3]
    found = explained(product(x, q.weight(codes=codes)), x, q)
    assert all("multiplied by" not in f.evidence[0] for f in found)
