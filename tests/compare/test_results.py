"""Statuses, counts and sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.compare.results import (
    SEVERITY,
    causes,
    first_bad,
    kernel_globs,
    layer_count,
    sentence,
    spoilt,
    status_of,
    verdict,
)
from gptq_diff.records import Finding, LayerCount, SkippedLayer
from tests.compare.made import bad, judgement, result


def test_the_first_bad_call_is_the_first_in_order_of_execution():
    rows = [judgement("a"), judgement("b", "inherited", index=1), judgement("c", "nan", index=2),
            judgement("d", "overflow", index=3)]  # fmt: skip
    found = first_bad(rows)
    assert (found.layer, found.kind, found.index) == ("c", "nan", 2)
    assert first_bad(rows[:2]) is None


def test_layers_are_compared_or_skipped_with_a_reason():
    rows = [judgement("a"), judgement("b", "inherited"), judgement("b", "ok", step=1), judgement("c", "inherited")]
    count = layer_count(rows, ["a", "b", "c", "d", "e"], {"d": "refused"})
    assert count == LayerCount(
        2, (SkippedLayer("c", "its input was already NaN or infinite"), SkippedLayer("d", "refused"))
    )
    assert status_of(None, count, 5, collapsed=False) == "incomplete"  # e is neither
    assert status_of(None, count, 4, collapsed=False) == "agree"


@pytest.mark.parametrize(
    ("found", "compared", "quantised", "collapsed", "status"),
    [
        (None, 4, 4, False, "agree"),
        (None, 4, 4, True, "collapsed"),
        (None, 0, 0, False, "incomplete"),
        (None, 3, 4, True, "incomplete"),
        (bad("overflow"), 3, 4, True, "overflow"),  # a failure seen is a failure, however little was compared
        (bad("nan"), 4, 4, True, "nan"),
        (bad("diverged"), 4, 4, True, "diverged"),
    ],
)
def test_status_is_the_cause_nearest_the_kernel(found, compared, quantised, collapsed, status):
    assert status_of(found, LayerCount(compared, ()), quantised, collapsed=collapsed) == status


def test_nothing_compared_is_incomplete():
    found = verdict([], 4)
    assert (found.status, found.backend) == ("incomplete", None)
    assert "Nothing was compared" in found.summary


def test_the_verdict_is_the_worst_result_and_of_equals_the_first():
    results = [result(s, backend=s) for s in reversed(SEVERITY) if s not in ("overflow", "nan", "diverged")]
    results += [result("diverged", backend="x", bad=bad("diverged")), result("overflow", backend="y", bad=bad()),
                result("overflow", backend="z", bad=bad())]  # fmt: skip
    found = verdict(results, 4)
    assert (found.status, found.backend, found.layer) == ("overflow", "y", "model.layers.1.mlp.down_proj")


def test_agreement_says_how_much_was_compared():
    found = verdict([result(backend="a"), result(backend="b", compared=3), result(backend="b", prompt="q")], 4)
    assert (
        found.summary
        == "All 2 backends agree with the exact answer on every linear judged (compared 3 of 4, 2 prompts)."
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (result("overflow", bad=bad(), collapsed=True, token=0),
         ["model.layers.1.mlp.down_proj", "2 infinite or NaN outputs", "at most 1,234", "only token 0"]),
        (replace(result("overflow", bad=bad(), collapsed=True, token=0), tokens=(5, 0)),
         ["2 infinite or NaN outputs", "No logit is finite where it then writes token 0"]),
        (result("overflow", bad=bad(nonfinite=1)), ["1 infinite or NaN output "]),
        (result("nan", bad=bad("nan", step=3)), ["decode step 3", "scales"]),
        (result("diverged", bad=bad("diverged")), ["0.5", "rounding explains 0.0002"]),
        (result("incomplete", compared=3), ["No verdict", "compared 3 of 4", "0 skipped"]),
        (result("collapsed", collapsed=True, token=7), ["No linear is to blame", "token 7"]),
        (result("nondeterministic"), ["Other outputs", "same input"]),
    ],
)  # fmt: skip
def test_sentences_say_what_and_where(made, words):
    text = sentence(made, 4)
    assert all(w in text for w in [*words, "b (prompt p)"]), text


def test_kernels_are_named_by_the_commonest_and_the_exceptions():
    rows = [judgement("a", path="fast"), judgement("b", path="fast"), judgement("c", path="slow"),
            judgement("c", step=1, path="fast"), judgement("a", step=1, path="fast")]  # fmt: skip
    assert kernel_globs(rows) == {"*": "fast", "c": "slow, fast (decode)"}
    assert kernel_globs([]) == {}


@pytest.mark.parametrize(
    ("kind", "cause", "evidence"),
    [
        ("overflow", "result-overflow", "up to 80,000, is beyond float16"),
        ("nan", "nan-weights", "2 outputs lie in columns"),
    ],
)
def test_a_cause_that_judging_knows_is_a_finding(kind, cause, evidence):
    """Of the first bad call only: what comes after it may have causes of its own."""
    rows = [judgement("a"), judgement("b", kind, index=1, cause=cause, nonfinite=2, exact_absmax=80000.0)]
    (finding,) = causes(rows)
    assert (finding.cause, finding.confidence, finding.layer) == (cause, 1.0, "b")
    assert evidence in finding.evidence[0]
    assert causes([judgement("a", "overflow"), *rows]) == ()
    assert causes([judgement("a")]) == ()


def test_a_result_beyond_float16_is_not_put_down_to_the_kernel():
    found = replace(result("overflow", bad=bad()), findings=(Finding("result-overflow", 1.0, ("e",), "b"),))
    assert "since the exact answer itself, up to 1,234, is beyond float16" in sentence(found, 4)


def test_an_input_that_a_cache_has_spoilt_is_a_finding():
    """Nothing errs on the computed rows and an input is lost: it came out of the cache. The first one is named."""
    rows = [judgement("a"), judgement("b", "inherited", index=1), judgement("c", "inherited", index=2)]
    (finding,) = spoilt(rows, 32)
    assert (finding.cause, finding.layer) == ("nan-input", "b")
    assert "32 rows of the prompt came from the prefix cache, and 3 were computed" in finding.evidence[0]
    (finding,) = spoilt([judgement("a"), judgement("b", index=1, inherited_rows=1)], 32)
    assert finding.layer == "b"


@pytest.mark.parametrize(
    ("rows", "cached"),
    [
        ([judgement("a"), judgement("b", "inherited", index=1)], 0),
        ([judgement("a"), judgement("b", index=1)], 32),
        ([judgement("a", "overflow"), judgement("b", "inherited", index=1)], 32),
        ([judgement("a"), judgement("b", "inherited", step=1)], 32),
    ],
)
def test_a_cache_is_not_blamed_for_what_else_explains(rows, cached):
    """No cached rows, nothing lost, a linear that errs itself, a later step, whose rows are all computed."""
    assert spoilt(rows, cached) == ()
