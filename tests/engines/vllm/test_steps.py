"""Steps, logits and forced ids; taps and biases."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.rank import collector_off
from gptq_diff.engines.vllm.steps import PENDING, Steps
from gptq_diff.engines.vllm.taps import Seen, Taps, Told
from gptq_diff.errors import CaptureError
from tests.engines.vllm.fakes import AutoGPTQLinearMethod, CPUWNA16LinearKernel


class Model(nn.Module):
    """Its logits are its input's last row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[-1:]


def logits_of(steps: Steps, *rows: list[float]) -> list[torch.Tensor]:
    """What a sampler is given for those steps."""
    model = Model()
    with steps.followed(model):
        given = [model.compute_logits(model(torch.tensor([row]))) for row in rows]
    assert "compute_logits" not in vars(model)
    assert not model._forward_pre_hooks
    return given


def test_logits_are_recorded_as_they_were_and_passed_on() -> None:
    steps = Steps(1, None, None)
    given = logits_of(steps, [0.0, 2.0, 1.0], [3.0, 2.0, 1.0])
    assert given[0].tolist() == [[0.0, 2.0, 1.0]]
    given[0].zero_()
    assert steps.first_logits_V is not None
    assert steps.first_logits_V.tolist() == [0.0, 2.0, 1.0]
    assert steps.tokens == [1, 0]
    assert steps.finite == [True, True]


def test_nan_logits_are_token_zero_and_not_finite() -> None:
    """facts.md: what users see as `!!!!`."""
    steps = Steps(1, None, None)
    logits_of(steps, [float("nan")] * 3, [1.0, float("inf"), 0.0])
    assert steps.tokens == [0, 1]
    assert steps.finite == [False, True]


@pytest.mark.parametrize("row", [[0.0, 2.0, 1.0], [float("nan")] * 3, [float("inf"), 0.0, 0.0]])
def test_a_forced_id_is_the_only_choice_whatever_the_logits(row: list[float]) -> None:
    steps = Steps(1, (2, 1), None)
    given = logits_of(steps, row, row, row)
    assert [int(torch.argmax(g)) for g in given[:2]] == [2, 1]
    assert all(bool(torch.isfinite(g).all()) for g in given[:2])
    assert steps.tokens[0] == int(torch.argmax(torch.tensor(row))), "its own choice is recorded"
    assert torch.equal(given[2], torch.tensor([row])) or row[0] != row[0], "past the forced ids it is free"


def test_two_forward_passes_for_one_token_are_refused() -> None:
    steps, model = Steps(1, None, None), Model()
    with steps.followed(model), pytest.raises(CaptureError, match="two forward passes"):
        model(torch.zeros(1, 3))
        model(torch.zeros(1, 3))


def test_logits_of_more_than_one_row_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"shape \[2, 3\]"):
        Steps(1, None, None).end(torch.zeros(2, 3))
    with pytest.raises(CaptureError, match="shape None"):
        Steps(1, None, None).end(None)


def test_rows_must_be_the_prompts_then_one() -> None:
    steps = Steps(5, None, None)
    steps.check_rows("q", 5)
    steps.check_rows("lm_head", 1)
    with pytest.raises(CaptureError, match="gave q 8 rows in step 0, not 5"):
        steps.check_rows("q", 8)
    steps.end(torch.zeros(1, 3))
    with pytest.raises(CaptureError, match="rows in step 1, not 1"):
        steps.check_rows("q", 5)


def test_a_linear_that_did_not_run_fails_the_step() -> None:
    """A tap that silently sees less would judge less."""
    steps, model = Steps(1, None, Tap(frozenset({"q"}), NullSink())), Model()
    with steps.followed(model), pytest.raises(CaptureError, match="1 of 1 quantised linears did not run"):
        model.compute_logits(model(torch.zeros(1, 3)))


def tapped(
    linears: list[FusedLinear], biases: dict[str, torch.Tensor], seen: Callable[[FusedLinear], Seen]
) -> AbstractContextManager[None]:
    """The taps in place, everything told."""
    return Taps(linears, biases, lambda linear: Told(seen(linear))).in_place()


def layer(bias: bool) -> Any:
    module: Any = nn.Module()
    module.w_KN = torch.eye(3)
    module.bias = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16) if bias else None
    module.quant_method = AutoGPTQLinearMethod(CPUWNA16LinearKernel())
    return module


def test_the_tap_sees_the_product_without_bias_and_the_model_gets_it_with() -> None:
    module, seen = layer(bias=True), []
    linear = FusedLinear("q", module, ())
    x = torch.ones(1, 2, 3, dtype=torch.float16)
    with tapped([linear], {}, lambda which: lambda x_MK, y_MN: seen.append((which.name, x_MK.shape, y_MN.clone()))):
        y = module.quant_method.apply(module, x, module.bias)
    assert y.tolist() == [[[2.0, 3.0, 4.0]] * 2]
    assert [(name, list(shape)) for name, shape, _ in seen] == [("q", [2, 3])]
    assert seen[0][2].tolist() == [[1.0, 1.0, 1.0]] * 2
    assert "apply" not in vars(module.quant_method)


def test_a_bias_that_the_kernel_has_permuted_is_replaced_by_the_one_that_was_read() -> None:
    """Marlin reorders layer.bias for its own use: added afterwards as it stands, it would be wrong."""
    module = layer(bias=True)
    read = {"q": module.bias.clone()}
    module.bias = module.bias.flip(0)
    with tapped([FusedLinear("q", module, ())], read, lambda _: lambda *_: None):
        y = module.quant_method.apply(module, torch.zeros(1, 3, dtype=torch.float16), module.bias)
    assert y.tolist() == [[1.0, 2.0, 3.0]]


def test_no_bias_is_added_where_vllm_adds_none() -> None:
    module = layer(bias=True)
    with tapped([FusedLinear("q", module, ())], {"q": module.bias}, lambda _: lambda *_: None):
        y = module.quant_method.apply(module, torch.zeros(1, 3, dtype=torch.float16), None)
    assert y.tolist() == [[0.0, 0.0, 0.0]]


def test_a_method_shared_by_modules_reports_only_those_asked_for_and_is_restored_after_an_error() -> None:
    one, other, seen = layer(bias=False), layer(bias=False), []
    other.quant_method = one.quant_method
    x = torch.zeros(1, 3, dtype=torch.float16)
    with (
        pytest.raises(ZeroDivisionError),
        tapped([FusedLinear("one", one, ())], {}, lambda which: lambda *_: seen.append(which.name)),
    ):
        one.quant_method.apply(one, x)
        other.quant_method.apply(other, x)
        raise ZeroDivisionError
    assert seen == ["one"]
    assert "apply" not in vars(one.quant_method)


def test_the_collector_rests_while_a_prompt_runs_and_goes_on_as_before() -> None:
    """Also where it was off already, and where the engine fails."""
    gc.enable()
    with pytest.raises(ZeroDivisionError), collector_off():
        assert not gc.isenabled()
        with collector_off():
            pass
        assert not gc.isenabled(), "somebody else had switched it off"
        raise ZeroDivisionError
    assert gc.isenabled()


def test_logits_are_looked_at_late_and_in_bounds() -> None:
    """The engine's stream is not waited for at every step; what waits there is little."""
    steps = Steps(1, None, None)
    logits_of(steps, *[[0.0, float(i % 2), 0.5] for i in range(PENDING + 3)])
    assert len(steps._pending) == 3
    assert steps.tokens == [2 if i % 2 == 0 else 1 for i in range(PENDING + 3)]
    assert steps._pending == []


def test_rows_of_staged_calls_are_checked_when_their_step_ends() -> None:
    """They were told to nobody before: a padded batch is refused all the same."""
    tap = Tap(frozenset({"q"}), NullSink())
    steps, model = Steps(4, None, tap), Model()
    with steps.followed(model), pytest.raises(CaptureError, match="gave q 5 rows in step 0, not 4"):
        hidden = model(torch.zeros(1, 3))
        tap.rows_seen[5] = "q"
        tap.record("q", hidden, hidden, "p")
        model.compute_logits(hidden)
