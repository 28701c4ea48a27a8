"""Judgements on disk, and spoiled columns from two checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.compare.judge_run import layer_weight, read_judged, write_judged
from tests.compare.made import judgement, spec


def test_what_is_written_is_read_again(tmp_path):
    rows = [judgement("a", first_index=(2, 7), nonfinite=1, kind="overflow"), judgement("b", excess=None)]
    path = tmp_path / "judged" / "b" / "p.jsonl"
    write_judged(path, rows)
    assert read_judged(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["p.jsonl"]


def test_a_capture_that_was_never_judged_has_no_judgements(tmp_path):
    assert read_judged(tmp_path / "nothing.jsonl") == []


def packed(bad_column=None):
    s = spec(64, 32)
    scales = torch.full((2, 32), 0.01).half()
    if bad_column is not None:
        scales[1, bad_column] = float("nan")
    return PackedLinear(
        s, torch.zeros(8, 32, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32), scales, None, None
    )


def test_columns_are_spoiled_by_either_checkpoints_scales():
    sound, damaged = (SimpleNamespace(packed=lambda name, b=b: packed(b)) for b in (None, 5))
    both = layer_weight(spec(), damaged, damaged)
    assert both.bad_N.nonzero().tolist() == both.loaded_bad_N.nonzero().tolist() == [[5]]
    one = layer_weight(spec(), sound, damaged)
    assert (one.bad_N.any(), one.loaded_bad_N.nonzero().tolist()) == (False, [[5]])
    assert torch.isfinite(one.w_KN).all()
