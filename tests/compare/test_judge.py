"""Judging one layer: what every kind needs, and that figures are those of plain float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.compare.judge import FACTOR, judge_layer
from gptq_diff.numerics.partial_sums import FACTOR2
from tests.compare.made import K, N, call, sound, weight, x_of

INF, NAN = float("inf"), float("nan")


def only(layer, captured):
    (judged,) = judge_layer(layer, [captured])
    return judged


def test_a_sound_call_is_ok_and_its_figures_are_float64s():
    layer, x = weight(), x_of(5)
    captured = sound(layer, x)
    j = only(layer, captured)
    exact = x.numpy().astype(np.float64) @ layer.w_KN.numpy().astype(np.float64)
    error = captured.y_MN.numpy().astype(np.float64) - exact
    assert (j.kind, j.cause, j.nonfinite, j.first_index, j.inherited_rows) == ("ok", None, 0, None, 0)
    assert j.local_l2_rel == pytest.approx(np.linalg.norm(error) / np.linalg.norm(exact), rel=1e-3)
    assert j.max_abs == pytest.approx(abs(error).max(), rel=1e-2)
    assert j.exact_absmax == pytest.approx(abs(exact).max(), rel=1e-6)
    assert j.input_absmax == float(x.abs().max()) and j.output_absmax == float(captured.y_MN.abs().max())
    assert (j.rows, j.elements, j.layer, j.path, j.rank) == (5, 5 * N, layer.spec.name, "fp16", 0)
    assert 0 < j.excess < 0.5 and j.noise_floor > j.local_l2_rel / FACTOR


def test_an_error_of_one_percent_diverges():
    layer, x = weight(), x_of(5)
    y = (x.float() @ layer.w_KN * 1.01).half()
    j = only(layer, call(x, y))
    assert j.kind == "diverged" and j.local_l2_rel == pytest.approx(0.01, rel=0.05)


def test_the_threshold_is_factor_times_the_floor():
    """Errors of a known size on either side of 3 floors, all rows and columns alike."""
    layer, x = weight(), x_of(40)
    floor = only(layer, sound(layer, x)).noise_floor
    exact = x.double() @ layer.w_KN.double()
    for share, kind in ((0.6, "ok"), (1.15, "diverged")):
        y = (exact * (1 + share * FACTOR * floor)).float().half()
        assert only(layer, call(x, y)).kind == kind


def test_one_bad_row_is_found_although_another_row_is_a_thousand_times_larger():
    layer, x = weight(), x_of(6)
    x[0] *= 1000
    y = (x.double() @ layer.w_KN.double()).half()
    y[4] *= 1.02
    j = only(layer, call(x, y))
    assert (j.kind, j.worst_row) == ("diverged", 4)
    assert j.local_l2_rel < 1e-3  # the whole tensor does not show it


def test_one_bad_column_is_found_although_another_column_is_a_thousand_times_larger():
    w = weight().w_KN.clone()
    w[:, 0] *= 1000
    layer, x = weight(w), x_of(12)
    y = (x.double() @ w.double()).half()
    y[:, 7] *= 1.02
    assert only(layer, call(x, y)).kind == "diverged"
    assert only(layer, sound(layer, x)).kind == "ok"


def test_infinity_where_the_answer_is_small_is_an_overflow():
    layer, x = weight(), x_of(5)
    captured = sound(layer, x)
    captured.y_MN[2, 7], captured.y_MN[3, 1] = INF, NAN
    j = only(layer, captured)
    assert (j.kind, j.cause, j.nonfinite, j.first_index) == ("overflow", None, 2, (2, 7))
    assert j.excess < 1 and j.output_absmax < 100  # what is not finite enters no norm and no maximum


def test_infinity_where_the_answer_exceeds_half_precision_is_the_formats_doing():
    w = torch.full((K, N), 0.01)
    w[:, 3] = 30.0
    layer, x = weight(w), torch.full((2, K), 40.0).half()  # column 3: 76800
    j = only(layer, sound(layer, x))
    assert (j.kind, j.cause, j.nonfinite, j.first_index) == ("overflow", "result-overflow", 2, (0, 3))
    assert j.exact_absmax == pytest.approx(76800)


def test_a_kernels_overflow_beside_one_of_the_format_is_the_kernels():
    w = torch.full((K, N), 0.01)
    w[:, 3] = 30.0
    layer, x = weight(w), torch.full((2, K), 40.0).half()
    captured = sound(layer, x)
    captured.y_MN[1, 5] = INF
    assert only(layer, captured).cause is None


@pytest.mark.parametrize("where", ["bad", "loaded_bad"])
def test_nan_through_the_weights_own_scales_is_nan_weights(where):
    w = weight().w_KN.clone()
    if where == "bad":  # the judging checkpoint has it too; else only the damaged copy that the backend loaded
        w[:32, 4] = NAN
    layer, x = weight(w, **{where: (4,)}), x_of(9)
    captured = sound(weight(), x)
    captured.y_MN[:, 4] = NAN
    j = only(layer, captured)
    assert (j.kind, j.cause, j.nonfinite, j.first_index) == ("nan", "nan-weights", 9, (0, 4))
    assert j.excess < 1


def test_a_fault_beside_a_spoiled_column_is_still_seen():
    layer, x = weight(loaded_bad=(4,)), x_of(9)
    captured = sound(layer, x)
    captured.y_MN[:, 4] = NAN
    captured.y_MN[2, 6] = INF
    j = only(layer, captured)
    assert (j.kind, j.nonfinite) == ("overflow", 10)
    captured.y_MN[2, 6] = 50.0
    assert only(layer, captured).excess > 1


def test_lost_inputs_are_inherited():
    layer, x = weight(), x_of(3)
    x[:, 5] = INF
    j = only(layer, call(x, torch.full((3, N), NAN, dtype=torch.float16)))
    assert (j.kind, j.inherited_rows, j.nonfinite, j.first_index) == ("inherited", 3, 0, None)
    assert (j.excess, j.local_l2_rel, j.noise_floor, j.worst_row) == (None, None, None, None)


def test_some_lost_rows_leave_the_others_to_be_judged():
    layer, x = weight(), x_of(4)
    captured = sound(layer, x)
    x[1, 0] = NAN
    captured.y_MN[1] = NAN
    j = only(layer, captured)
    assert (j.kind, j.inherited_rows, j.nonfinite) == ("ok", 1, 0)
    captured.y_MN[2, 9] = INF
    j = only(layer, captured)
    assert (j.kind, j.nonfinite, j.first_index) == ("overflow", 1, (2, 9))
    captured.y_MN[2, 9] = 50.0
    j = only(layer, captured)
    assert (j.kind, j.worst_row) == ("diverged", 2)


def test_float32_captures_are_judged_with_the_sharpness_of_float64():
    """An error of 3e-6 is nothing in float16 and twenty times what float32 explains."""
    layer, x = weight(), x_of(5, dtype=torch.float32)
    exact = x.double() @ layer.w_KN.double()
    good, off = exact.float(), (exact * (1 + 3e-6)).float()
    assert only(layer, call(x, good, path="exact")).kind == "ok"
    j = only(layer, call(x, off, path="exact"))
    assert j.kind == "diverged" and j.local_l2_rel == pytest.approx(3e-6, rel=0.1)


def test_many_calls_are_judged_as_each_alone():
    layer = weight()
    calls = [sound(layer, x_of(m, seed=m), step=i, index=3) for i, m in enumerate((4, 1, 12, 1))]
    calls[3].y_MN[0] *= 1.1
    calls[1].y_MN[0, 2] = INF
    calls.append(sound(layer, x_of(3, dtype=torch.float32), path="exact", step=9))
    together = judge_layer(layer, calls)
    for captured, j in zip(calls, together):
        alone = only(layer, captured)
        assert (j.step, j.index, j.kind, j.first_index) == (
            captured.step,
            captured.index,
            alone.kind,
            alone.first_index,
        )
        assert j.excess == pytest.approx(alone.excess, rel=1e-2)
    assert [j.kind for j in together] == ["ok", "overflow", "ok", "diverged", "ok"]
    assert judge_layer(layer, []) == []


def test_judging_leaves_the_captured_tensors_alone():
    layer, x = weight(), x_of(9, dtype=torch.float32)
    x[2, 2] = INF
    captured = call(x, (x @ layer.w_KN), path="exact")
    before = captured.x_MK.clone(), captured.y_MN.clone()
    judge_layer(layer, [captured])
    assert torch.equal(captured.x_MK, before[0]) and torch.equal(captured.y_MN.nan_to_num(), before[1].nan_to_num())


def test_inherited_error_is_the_relative_difference_of_the_inputs():
    layer, x = weight(), x_of(3)
    reference = x.float() * 1.5 + 0.1
    calls = [sound(layer, x, reference_x=reference), sound(layer, x), sound(layer, x, reference_x=reference[:2])]
    first, second, third = judge_layer(layer, calls)
    a, b = x.double().numpy(), reference.double().numpy()
    assert first.inherited_l2_rel == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-5)
    assert second.inherited_l2_rel is None and third.inherited_l2_rel is None


@pytest.mark.parametrize("side", ["backend", "reference"])
def test_a_difference_to_something_not_finite_has_no_size(side):
    layer, x = weight(), x_of(3)
    reference = x.float() + 0.1
    (x if side == "backend" else reference)[1, 1] = INF
    assert only(layer, sound(layer, x, reference_x=reference)).inherited_l2_rel is None


def test_zero_input_and_zero_output_agree_and_zero_input_with_output_does_not():
    layer, x = weight(), torch.zeros(2, K).half()
    j = only(layer, sound(layer, x))
    assert (j.kind, j.local_l2_rel, j.excess) == ("ok", 0.0, 0.0)
    j = only(layer, call(x, torch.full((2, N), 0.5).half()))
    assert (j.kind, j.local_l2_rel) == ("diverged", None)


def test_subnormal_outputs_are_explained():
    layer = weight(weight().w_KN * 0.01)
    x = (x_of(9).float() * 2e-5).half()
    assert only(layer, sound(layer, x)).kind == "ok"


def test_columns_are_judged_from_eight_rows_on_and_only_usable_ones_count():
    w = weight().w_KN.clone()
    w[:, 0] *= 1000
    layer = weight(w)

    def kind(rows, empty=0):
        x = x_of(rows)
        x[:empty] = 0
        y = (x.double() @ w.double()).half()
        y[:, 7] *= 1.02
        return only(layer, call(x, y)).kind

    assert [kind(7), kind(8), kind(12, empty=5), kind(12, empty=4)] == ["ok", "diverged", "ok", "diverged"]


def test_the_sharper_figure_knows_the_factor_that_the_judge_grants():
    assert FACTOR2 == FACTOR**2 and FACTOR <= 3


def test_cancelling_halves_are_explained_by_their_own_partial_sums():
    """All terms equal in the first half, and opposite in the second: what float16 sums in between is large."""
    w = torch.full((K, N), 0.0136)
    x = torch.full((9, K), 300.0).half()
    x[:, K // 2 :] *= -1
    x[:, 0] += torch.arange(9.0).half()
    y = torch.zeros(9, N, dtype=torch.float16)
    for k in range(0, K, 16):
        y = (y.double() + x[:, k : k + 16].double() @ w[k : k + 16].half().double()).half()
    for captured_path, kind in (("exllama-reconstruct", "ok"), ("fp16", "diverged")):
        assert only(weight(w), call(x, y, path=captured_path)).kind == kind
