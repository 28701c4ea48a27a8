"""Which calls and inputs belong together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gptq_diff.capture.store import CaptureReader, CaptureWriter
from gptq_diff.capture.tap import Tap
from gptq_diff.compare.align import Captured, comparable_steps
from tests.compare.made import K, N, manifest, x_of


def reader(tokens, forced=False):
    return SimpleNamespace(manifest=manifest(tokens, forced=forced))


@pytest.mark.parametrize(
    ("tokens", "reference", "forced", "steps"),
    [
        ((1, 2, 3), (1, 2, 3), False, 3),
        ((1, 2, 3), (9, 2, 3), False, 1),  # the prefill always is comparable
        ((1, 2, 3), (1, 9, 3), False, 2),  # step 1 was fed token 0, which agrees
        ((1, 2), (1, 2, 3, 4), False, 2),
        ((1, 2, 3), (9, 8, 7), True, 3),  # fed the reference's ids
        ((1, 2, 3), (9, 8), True, 2),
    ],
)
def test_inputs_are_comparable_up_to_the_first_different_token(tokens, reference, forced, steps):
    assert comparable_steps(reader(tokens, forced), reader(reference)) == steps


def test_without_a_reference_nothing_is_comparable():
    assert comparable_steps(reader((1, 2)), None) == 0


def stored(path, tokens, seed, layers=("a", "b"), repeat_y=None):
    writer = CaptureWriter(path)
    tap = Tap(frozenset(layers), writer)
    for step in range(len(tokens)):
        tap.begin_step(step)
        for i, layer in enumerate(layers):
            x = x_of(3 if step == 0 else 1, seed=seed + 10 * step + i)
            y = torch.zeros(len(x), N).half() if repeat_y is None else repeat_y(x, layer)
            tap.record(layer, x, y, f"path{step}")
        tap.end_step()
    writer.close()
    writer.finish(manifest(tokens, order=tuple(tap.order), where=writer.where), torch.zeros(5))
    return CaptureReader(path)


def test_calls_come_in_order_with_the_references_input_while_it_is_comparable(tmp_path):
    ours = stored(tmp_path / "a", (1, 2, 3), seed=1)
    theirs = stored(tmp_path / "b", (1, 9, 3), seed=2)
    calls = Captured(ours, theirs).calls("b")
    assert [(c.step, c.index, c.path) for c in calls] == [(0, 1, "path0"), (1, 1, "path1"), (2, 1, "path2")]
    assert [c.x_MK.shape for c in calls] == [(3, K), (1, K), (1, K)]
    assert torch.equal(calls[1].reference_x, theirs.tensor(1, "b", "in"))
    assert calls[2].reference_x is None
    assert Captured(ours, None).calls("b")[0].reference_x is None
    assert Captured(ours, theirs).calls("nobody") == []
