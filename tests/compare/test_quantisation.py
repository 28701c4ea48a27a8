"""What quantisation changes, against plain sums in float64."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.compare.judge import CapturedCall, Weight
from gptq_diff.compare.judge_run import judge_calls
from gptq_diff.compare.quantisation import quantisation_errors, summary
from gptq_diff.records import ORIGINAL, LayerSpec

SPEC = LayerSpec("model.layers.0.mlp.up_proj", 96, 40, 4, 32, True, False, "gptq", False)
NOTHING = torch.zeros(40, dtype=torch.bool)


def weights(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [K, N]: the quantised weight and the one it was made from."""
    draw = torch.Generator().manual_seed(seed)
    w_KN = torch.randn(96, 40, generator=draw)
    return w_KN, w_KN + 0.1 * torch.randn(96, 40, generator=draw)


def call(x_MK: torch.Tensor, y_MN: torch.Tensor, step: int = 0, reference: torch.Tensor | None = None) -> CapturedCall:
    return CapturedCall(step, 3, ORIGINAL, x_MK, y_MN, reference)


def test_each_call_has_its_own_figures() -> None:
    """Prefill and a decode step, judged together: each against its own product, and its x against the reference's."""
    quantised, original = weights(0)
    draw = torch.Generator().manual_seed(1)
    xs = [torch.randn(rows, 96, generator=draw) for rows in (5, 1)]
    xs[0][0] *= 1e4
    references = [x + 0.01 * torch.randn(x.shape, generator=draw) for x in xs]
    calls = [call(x, x @ original, i, r) for i, (x, r) in enumerate(zip(xs, references))]
    found = quantisation_errors(Weight(SPEC, quantised, NOTHING, NOTHING), calls)
    for j, x, reference in zip(found, xs, references):
        exact, plain = x.double() @ quantised.double(), x.double() @ original.double()
        assert j.local_l2_rel == pytest.approx(float((plain - exact).norm() / exact.norm()), rel=1e-5)
        gap = (x.double() - reference.double()).norm() / reference.double().norm()
        assert j.inherited_l2_rel == pytest.approx(float(gap), rel=1e-5)
        assert (j.kind, j.noise_floor, j.excess, j.nonfinite) == (ORIGINAL, None, None, 0)
        assert j.max_abs == pytest.approx(float((plain - exact).abs().max()), rel=1e-4)
        assert (j.input_absmax, j.rows) == (float(x.abs().max()), len(x))
        assert j.exact_absmax == pytest.approx(float(exact.abs().max()), rel=1e-6)
    assert [j.step for j in found] == [0, 1]


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    """An overflow of the unquantised model, a row that came in lost, a column whose scales are NaN."""
    quantised, original = weights(2)
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(3))
    y = x @ original
    x[1, 5] = float("nan")
    y[1] = float("nan")
    y[2, 7] = float("inf")
    quantised[:, 9] = float("nan")
    (found,) = quantisation_errors(Weight(SPEC, quantised, NOTHING, NOTHING), [call(x, y)])
    assert (found.nonfinite, found.first_index, found.inherited_rows) == (1, (2, 7), 1)
    good = torch.ones(4, 40, dtype=torch.bool)
    good[1], good[2, 7], good[:, 9] = False, False, False
    exact = (torch.nan_to_num(x.double()) @ torch.nan_to_num(quantised.double()))[good]
    assert found.local_l2_rel == pytest.approx(float((y.double()[good] - exact).norm() / exact.norm()), rel=1e-5)
    assert found.inherited_l2_rel is None


def test_zeros_have_no_error_and_nothing_to_divide_by() -> None:
    """x all zero: no difference; a y that is not zero all the same has no relative size."""
    quantised, _ = weights(4)
    weight = Weight(SPEC, quantised, NOTHING, NOTHING)
    zero = torch.zeros(2, 96)
    assert quantisation_errors(weight, [call(zero, torch.zeros(2, 40))])[0].local_l2_rel == 0.0
    assert quantisation_errors(weight, [call(zero, torch.ones(2, 40))])[0].local_l2_rel is None
    assert quantisation_errors(weight, []) == []


def test_kernels_and_unquantised_linears_are_told_apart_in_their_order() -> None:
    """By their path; the kernel's error of rounding is judged, the other's is not."""
    quantised, original = weights(5)
    weight = Weight(SPEC, quantised, NOTHING, NOTHING)
    x = torch.randn(9, 96, generator=torch.Generator().manual_seed(6))
    kernel = CapturedCall(0, 3, "exact", x, x @ quantised, None)
    wrong = CapturedCall(0, 3, "exact", x, x @ original, None)
    found = judge_calls(weight, [call(x, x @ original), kernel, wrong, call(x, x @ quantised)])
    assert [j.kind for j in found] == [ORIGINAL, "ok", "diverged", ORIGINAL]
    assert found[0].local_l2_rel == pytest.approx(found[2].local_l2_rel, rel=1e-5)
    assert (found[3].local_l2_rel or 1.0) < 1e-6


def test_the_summary_is_of_the_prefill() -> None:
    """The middle and the worst of what has a size; every layer, decode steps left out."""
    quantised, original = weights(7)
    weight = Weight(SPEC, quantised, NOTHING, NOTHING)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(8))
    prefill, decode = quantisation_errors(weight, [call(x, x @ original), call(x[:1] * 2, x[:1] @ original, 1)])
    found = summary([prefill, decode])
    assert list(found.layers) == [SPEC.name]
    assert found.median_l2_rel == found.worst_l2_rel == prefill.local_l2_rel != decode.local_l2_rel
    assert found.worst_layer == SPEC.name
    empty = summary([decode])
    assert (empty.layers, empty.median_l2_rel, empty.worst_layer) == ({}, None, None)
