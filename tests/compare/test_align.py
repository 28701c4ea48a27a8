"""Which calls and inputs belong together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gptq_diff.capture import store
from gptq_diff.capture.store import CaptureReader, CaptureWriter
from gptq_diff.capture.tap import Tap
from gptq_diff.compare import align
from gptq_diff.compare.align import FEW_ROWS, Captured, comparable_steps
from gptq_diff.errors import CaptureError
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


def cached_capture(path, x_MK, cached, rows_of_head=None):
    """One step: layer "a" on these rows, an output head on its last row; the first `cached` rows were not computed."""
    writer = CaptureWriter(path)
    tap = Tap(frozenset(("a", "lm_head")), writer)
    tap.begin_step(0)
    tap.record("a", x_MK, torch.zeros(len(x_MK), N).half(), "fp16")
    head = x_MK[-1:] if rows_of_head is None else x_MK[-rows_of_head:]
    tap.record("lm_head", head, torch.zeros(len(head), N).half(), "fp16")
    tap.end_step()
    writer.close()
    found = manifest((1,), order=tuple(tap.order), where=writer.where, cached_rows=cached)
    writer.finish(found, torch.zeros(5))
    return CaptureReader(path)


@pytest.mark.parametrize("cached", [0, 3, 7, 11])
def test_rows_that_a_cache_left_out_are_left_out_of_the_reference(cached, tmp_path):
    """By position: the same inputs give no inherited error, however many of the 12 rows were computed."""
    x = x_of(12, seed=5)
    ours, theirs = cached_capture(tmp_path / "a", x[cached:], cached), cached_capture(tmp_path / "b", x, 0)
    (call,) = Captured(ours, theirs).calls("a")
    if len(x) - cached < FEW_ROWS:
        assert torch.equal(call.reference_x, x[cached:])
    else:
        assert call.inherited_l2_rel == 0.0
    (head,) = Captured(ours, theirs).calls("lm_head")
    assert torch.equal(head.reference_x, x[-1:])


def test_a_row_further_on_would_be_another_input(tmp_path):
    """Or the test above would prove nothing."""
    x = x_of(12, seed=5)
    ours, theirs = cached_capture(tmp_path / "a", x[3:], 4), cached_capture(tmp_path / "b", x, 0)
    assert Captured(ours, theirs).calls("a")[0].inherited_l2_rel is None  # 9 rows and 8: nothing to compare
    shifted = cached_capture(tmp_path / "c", x[2:11], 3)
    assert Captured(shifted, theirs).calls("a")[0].inherited_l2_rel > 1.0


@pytest.mark.parametrize("cached", [4, 11])
def test_a_reference_with_a_cache_of_its_own(cached, tmp_path):
    """The rows that both computed are compared, for many rows and for few."""
    x = x_of(12, seed=5)
    ours, theirs = cached_capture(tmp_path / "a", x, 0), cached_capture(tmp_path / "b", x[cached:], cached)
    (call,) = Captured(ours, theirs).calls("a")
    assert call.inherited_l2_rel == 0.0
    assert call.x_MK.shape == (12, K), "all of its own rows are judged"
    both = cached_capture(tmp_path / "c", x[cached:], cached)
    (call,) = Captured(both, theirs).calls("a")
    assert call.inherited_l2_rel == 0.0 if cached == 4 else torch.equal(call.reference_x, x[cached:])


def long_capture(path, seed, skip=()):
    """A prefill of 9 rows through four linears, of which b took the very input of a."""
    writer = CaptureWriter(path)
    tap = Tap(frozenset("abcd"), writer)
    tap.begin_step(0)
    x_MK = {layer: x_of(9, seed=seed + i) for i, layer in enumerate("aacd")}
    first = x_MK["a"]
    for layer, x in (("a", first), ("b", first), ("c", x_MK["c"]), ("d", x_MK["d"])):
        tap.record(layer, x, torch.zeros(len(x), N).half(), "fp16")
    tap.end_step()
    writer.close()
    where = {key: place for key, place in writer.where.items() if key not in skip}
    writer.finish(manifest((1,), order=tuple(tap.order), where=where), torch.zeros(5))
    return CaptureReader(path)


def test_comparing_ahead_says_what_asking_one_by_one_says(tmp_path, monkeypatch):
    """Every prefill's input, shared ones once; afterwards nobody compares again; one that is gone is left out."""
    ours, theirs = long_capture(tmp_path / "a", 1), long_capture(tmp_path / "b", 5, skip=("0/d/in",))
    one_by_one, ahead = Captured(ours, theirs), Captured(ours, theirs)
    expected = {layer: [c.inherited_l2_rel for c in one_by_one.calls(layer)] for layer in "abcd"}
    ahead.compare_inputs()
    monkeypatch.setattr(align, "gap", lambda *_: pytest.fail("compared again"))
    assert {layer: [c.inherited_l2_rel for c in ahead.calls(layer)] for layer in "abcd"} == expected
    assert expected["a"] == expected["b"] != expected["c"] and expected["d"] == [None]
    assert None not in expected["a"] + expected["c"]


def test_comparing_ahead_reads_every_header_once(tmp_path, monkeypatch):
    """Finding tensors in small files costs as much as comparing them."""
    read = []
    real = store.read_header
    monkeypatch.setattr(store, "read_header", lambda path: read.append(path) or real(path))
    ours, theirs = long_capture(tmp_path / "a", 1), long_capture(tmp_path / "b", 5)
    captured = Captured(ours, theirs)
    captured.compare_inputs()
    assert len([call for layer in "abcd" for call in captured.calls(layer)]) == 4
    assert sorted(read) == [tmp_path / name / "block-000.safetensors" for name in "ab"]


def test_calls_are_the_same_whether_compared_ahead_or_not(tmp_path):
    """Every field of every call, of steps and layers of which only some were compared ahead."""
    captures = [stored(tmp_path / name, (1, 2, 3), seed=seed) for name, seed in (("a", 1), ("b", 2))]
    long = [long_capture(tmp_path / f"long-{name}", seed) for name, seed in (("a", 1), ("b", 2))]
    for ours, theirs in (captures, long):
        one_by_one, ahead = Captured(ours, theirs), Captured(ours, theirs)
        ahead.compare_inputs()
        for layer in ours.manifest.order:
            for a, b in zip(one_by_one.calls(layer), ahead.calls(layer)):
                assert [a[i] for i in (0, 1, 2, 6, 7, 8)] == [b[i] for i in (0, 1, 2, 6, 7, 8)]
                assert torch.equal(a.x_MK, b.x_MK) and torch.equal(a.y_MN, b.y_MN)
                assert (a.reference_x is None) == (b.reference_x is None)


def test_a_damaged_reference_is_named_when_inputs_are_compared_ahead(tmp_path):
    """In the sentence that asking one by one gives."""
    ours, theirs = long_capture(tmp_path / "a", 1), long_capture(tmp_path / "b", 5)
    block = tmp_path / "b" / "block-000.safetensors"
    block.write_bytes(block.read_bytes()[:-1])
    with pytest.raises(CaptureError, match=r"block-000\.safetensors is damaged: .*truncated"):
        Captured(ours, theirs).compare_inputs()
