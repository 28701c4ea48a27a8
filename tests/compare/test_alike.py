"""Calls that are just like another are judged once, and are told as if each had been judged."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.compare import alike, judge_run
from gptq_diff.compare.judge import judge_layer
from gptq_diff.compare.judge_run import judge_calls
from tests.compare.made import sound, weight, x_of


@pytest.fixture
def everything(monkeypatch):
    """Small calls are looked at too."""
    monkeypatch.setattr(alike, "WORTH", 1)


def calls_of(layer):
    first = sound(layer, x_of(9), index=3)
    twin = first._replace(x_MK=first.x_MK.clone(), y_MN=first.y_MN.clone(), index=5, inherited_l2_rel=0.25)
    other_path = twin._replace(path="machete", index=6)
    other_y = twin._replace(y_MN=first.y_MN * 2, index=7)
    other_x = sound(layer, x_of(9, seed=4), index=8)
    return [first, twin, other_path, other_y, other_x, other_y._replace(index=9)]


@pytest.mark.usefixtures("everything")
def test_what_is_said_is_what_judging_each_says(monkeypatch):
    """Every field of every judgement, and the rows' figures; only the distinct calls reach the judge."""
    layer, seen = weight(), []
    calls = calls_of(layer)
    expected_rows, rows = [], []
    expected = judge_layer(layer, calls, expected_rows)
    monkeypatch.setattr(judge_run, "judge_layer", lambda w, c, r: seen.extend(c) or judge_layer(w, c, r))
    assert judge_calls(layer, calls, rows) == expected
    assert all((a == b).all() for a, b in zip(rows, expected_rows)) and len(rows) == len(expected_rows) == 6
    assert [call.index for call in seen] == [3, 6, 7, 8]


@pytest.mark.usefixtures("everything")
def test_calls_are_alike_bit_for_bit_or_not_at_all():
    """NaN equals NaN of the same bits; zeros of either sign differ; another dtype is another call."""
    layer = weight()
    first = sound(layer, x_of(9))
    first.y_MN[0, 0] = float("nan")
    first.y_MN[0, 1] = 0.0
    twin = first._replace(y_MN=first.y_MN.clone())
    negative = first._replace(y_MN=first.y_MN.clone())
    negative.y_MN[0, 1] = -0.0
    wide = first._replace(x_MK=first.x_MK.float())
    assert alike.first_alike([first, twin, negative, wide]) == [0, 0, 2, 3]


def test_small_calls_are_not_compared(monkeypatch):
    """Where judging is cheaper than looking, nobody looks."""
    monkeypatch.setattr(alike, "_alike", lambda *_: pytest.fail("compared"))
    layer = weight()
    calls = [sound(layer, x_of(2)), sound(layer, x_of(2))]
    assert alike.first_alike(calls) == [0, 1]
    assert torch.equal(calls[0].x_MK, calls[1].x_MK)
