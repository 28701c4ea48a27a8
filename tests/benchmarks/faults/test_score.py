"""Scoring: what counts as found, as the right layer, as the right cause, as an alarm."""

from __future__ import annotations

import pytest

from benchmarks.faults import tables
from benchmarks.faults.score import alarms, score

Q, K, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.down_proj"


def fault(kind, shares, between=None):
    return {"kind": kind, "what": "", "layers": list(shares), "at": "kernel", "between": between, "shares": shares}


def record(planted, bad=None, findings=(), path="fp16", **more):
    first = None if bad is None else {"layer": bad, "step": 0, "kind": "diverged", "path": path, "excess": 5.0}
    return {
        "id": "fault-0", "healthy": False, "planted": planted, "first_bad": first, "drawn_as": "x", "place": "process",
        "way": "bytes", "model": "m", "kernel": "fp16", "tokens": 5, "extra": "", "seconds": {"all": 1.0},
        "status": "agree" if bad is None else "diverged", "reference_status": "agree", "reference_findings": [],
        "findings": [{"cause": c, "layer": at, "confidence": 1.0, "evidence": []} for c, at in findings], **more,
    }  # fmt: skip


def told(r):
    s = score(r)
    return s.above, s.found, s.exact, s.cause, s.best


@pytest.mark.parametrize(
    ("bad", "findings", "expected"),
    [
        (Q, [("scale-group", Q)], (True, True, True, True, "scale-group")),
        (Q, [("unknown", Q), ("scale-group", Q)], (True, True, True, False, "unknown")),
        (Q, [("scale-group", K)], (True, True, True, False, "nothing")),
        (K, [("scale-group", K)], (True, True, False, False, "scale-group")),
        (None, [], (True, False, False, False, "nothing")),
    ],
)
def test_a_single_fault(bad, findings, expected):
    """The best finding at the planted layer decides; a right cause elsewhere, or a second guess, does not count."""
    assert told(record([fault("scale-group", {Q: 7.0})], bad, findings)) == expected


def test_the_first_of_two_linears_is_to_be_found():
    """The later one is no find, and its cause is not asked for."""
    planted = [fault("clamp", {DOWN: 9.0}), fault("dtype", {K: 2.0})]
    assert told(record(planted, K, [("dtype", K), ("clamp", DOWN)]))[2:] == (True, True, "dtype")
    assert told(record(planted, DOWN, [("clamp", DOWN)]))[2:] == (False, False, "clamp")


def test_a_first_fault_below_the_threshold_may_be_found_or_not():
    """Either linear is the first bad one; each with its own cause."""
    planted = [fault("clamp", {DOWN: 9.0}), fault("dtype", {K: 0.9})]
    assert told(record(planted, DOWN, [("clamp", DOWN)]))[2:4] == (True, True)
    assert told(record(planted, K, [("dtype", K)]))[2:4] == (True, True)
    assert told(record(planted, Q, [("dtype", Q)]))[2] is False


def test_two_in_one_linear_are_a_set():
    """Both must be named first, in any order."""
    planted = [fault("clamp", {K: 9.0}), fault("dtype", {K: 2.0})]
    assert told(record(planted, K, [("dtype", K), ("clamp", K)]))[3] is True
    assert told(record(planted, K, [("clamp", K)]))[3] is False
    assert told(record(planted, K, [("clamp", K), ("unknown", K), ("dtype", K)]))[3] is False


def test_of_two_in_one_linear_one_may_be_too_mild():
    """Then the other alone is asked for."""
    planted = [fault("clamp", {K: 9.0}), fault("dtype", {K: 0.2})]
    assert told(record(planted, K, [("clamp", K)]))[3] is True


def test_the_milder_of_two_in_one_linear_may_be_named_first():
    """One below the threshold may be named or not, before or after the other; what was not planted may not."""
    planted = [fault("clamp", {K: 9.0}), fault("dtype", {K: 1.2})]
    assert told(record(planted, K, [("clamp", K)]))[3] is True
    assert told(record(planted, K, [("dtype", K), ("clamp", K)]))[3] is True
    assert told(record(planted, K, [("dtype", K)]))[3] is False
    assert told(record(planted, K, [("unknown", K), ("clamp", K)]))[3] is False


def test_the_threshold_leaves_room_for_a_whole_floor_of_rounding():
    """Three floors are what the judge asks for, so four are what can be promised; between them is neither."""
    at = {share: score(record([fault("dtype", {K: share})])).above for share in (0.99, 1.0, 1.33, 1.34)}
    assert at == {0.99: False, 1.0: False, 1.33: False, 1.34: True}
    records = [record([fault("dtype", {K: 1.1})]), record([fault("dtype", {K: 1.2})], K, [("dtype", K)])]
    found = tables.summary([*records, record([fault("dtype", {K: 0.5})])])
    assert (found["above"], found["near"]["right"], found["near"]["of"], found["below"]["of"]) == (0, 1, 2, 1)


def test_exchanged_linears_are_found_at_the_first_of_them():
    """q and k exchanged is one fault that two linears show."""
    planted = [fault("shard-order", {K: 500.0, Q: 400.0})]
    assert told(record(planted, Q, [("shard-order", Q)]))[2:4] == (True, True)
    assert told(record(planted, K, [("shard-order", K)]))[2] is False


def between(kind, before, after, at="between"):
    return {**fault(kind, {"": 12.0}, {"before": before, "after": after, "place": "x"}), "at": at}


def test_between_linears_the_next_input_names_the_place():
    """The linear itself is another place than what makes its input."""
    planted = [between("outside-linears", Q, DOWN)]
    assert told(record(planted, DOWN, [("outside-linears", DOWN)], path="attention"))[1:4] == (True, True, True)
    assert told(record(planted, DOWN, [("outside-linears", DOWN)]))[2:4] == (False, False)
    assert told(record(planted, K, [("outside-linears", K)], path="norm"))[2:4] == (False, False)


def test_after_the_last_linear_comes_the_output_head():
    """Reports call it lm_head."""
    planted = [between("outside-linears", DOWN, "")]
    assert told(record(planted, "lm_head", [("outside-linears", "lm_head")], path="lm_head"))[2:4] == (True, True)


def test_a_bias_added_after_the_kernel():
    """It is found at the next input, or as a step of its own linear; it comes before what the next linear does."""
    planted = [between("bias", K, "model.layers.1.self_attn.o_proj", "bias"), fault("clamp", {DOWN: 9.0})]
    assert told(record(planted, K, [("bias", K)], path="bias"))[2:4] == (True, True)
    o = "model.layers.1.self_attn.o_proj"
    assert told(record(planted, o, [("bias", o)], path="attention"))[2:4] == (True, True)
    assert told(record(planted, DOWN, [("clamp", DOWN)]))[2] is False


def test_below_the_threshold_nothing_is_asked():
    """Such a fault is counted in a row of its own."""
    assert score(record([fault("dtype", {K: 0.4})])).above is False


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, []),
        ({"status": "diverged"}, ["status diverged"]),
        ({"findings": [{"cause": "dtype", "layer": K, "confidence": 1, "evidence": []}]}, ["finding dtype"]),
        ({"findings": [{"cause": "split-k-noise", "layer": None, "confidence": 1, "evidence": []}]}, []),
        ({"reference_status": "diverged"}, ["reference diverged"]),
    ],
)
def test_alarms_of_a_healthy_run(more, expected):
    """Any status but agree and any finding but split-K noise is one, the reference's too."""
    assert alarms({**record([]), "healthy": True, **more}) == expected


def test_a_broken_reference_is_an_alarm_only_where_the_model_is_sound():
    """A model whose own scales are NaN has a reference that is NaN."""
    own = record([fault("nan-weights", {K: "inf"})], reference_status="nan")
    other = record([fault("dtype", {K: 3.0})], reference_status="nan")
    assert alarms(own) == [] and alarms(other) == ["reference nan"]


def test_the_summary_counts_by_hand():
    """Four faults: one right, one with a wrong cause, one missed, one below the threshold; an error beside them."""
    records = [
        record([fault("clamp", {K: 3.0})], K, [("clamp", K)]),
        record([fault("clamp", {K: 5.0})], K, [("unknown", K)]),
        record([fault("dtype", {K: "inf"})]),
        record([fault("dtype", {K: 0.3})]),
        {**record([]), "healthy": True, "status": "diverged", "id": "healthy-0"},
        {"id": "fault-9", "healthy": False, "error": "it broke"},
    ]
    found = tables.summary(records)
    assert (found["faults"], found["above"], found["errors"]) == (4, 3, ["fault-9"])
    assert found["exact"] == {"right": 2, "of": 3, "rate": 0.6667} and found["cause"]["right"] == 1
    assert found["false_alarms"] == ["healthy-0"] and found["reference_alarms"] == []
    assert found["confusion"] == {"clamp": {"clamp": 1, "unknown": 1}, "dtype": {"nothing": 1}}
    assert [(row["from"], row["faults"], row["found"]) for row in found["curve"]] == [
        (0.25, 1, 0), (2.0, 1, 1), (4.0, 1, 1), ("inf", 1, 0),
    ]  # fmt: skip
    assert "2 of 3" in tables.text(found)
