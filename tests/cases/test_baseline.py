"""A local error that grew beyond the noise is told; what another order of summation does is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gptq_diff.cases.baseline import ENOUGH, GROWTH, TYPICAL, Baseline, read_baseline
from gptq_diff.cases.read import read_case
from gptq_diff.cases.run_case import run_case
from gptq_diff.engines import hf
from gptq_diff.errors import UsageError
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.fp16 import Fp16Kernel
from gptq_diff.records import ALL_LINEARS, FAILED, HELD, CaseOutcome, Checked, Expectation, Figures, LinearError
from tests.cases.written import BANG, write_case

NAMES = [f"model.layers.{n}.mlp.up_proj" for n in range(20)]
FLOOR = 4e-4
SHARE = 1e-4
"""Errors of thousands of elements."""


def outcome(errors, *, share=SHARE, state=HELD, versions=None, fingerprint="f", floor=FLOOR, kernel="fp16", held=True):
    """A case that ran hf-fp16 on one prompt, with these errors of its linears."""
    linears = {name: LinearError(error, floor, share) for name, error in zip(NAMES, errors)}
    figures = Figures("hf-fp16", "p", "agree", {"*": kernel}, versions or {"torch": "2"}, linears)
    check = Checked("hf-fp16", "p", Expectation(status="agree"), None, () if held else ("status: ...",))
    return CaseOutcome("case", state, figures=(figures,), fingerprint=fingerprint, checks=(check,))


def errors(*, times=1.0, of=(), seed=0):
    """Errors about the floor, some or all of them grown."""
    drawn = FLOOR * np.random.default_rng(seed).uniform(0.7, 1.1, len(NAMES))
    for place in of or range(len(NAMES)):
        drawn[place] *= times
    return [float(one) for one in drawn]


@pytest.fixture
def known():
    return Baseline({}).updated([outcome(errors())])


def test_the_same_figures_are_no_regression(known):
    """A run that gives what it gave."""
    again = known.compare(outcome(errors()))
    assert (again.state, again.regressions, again.baseline) == (HELD, (), "")


@pytest.mark.parametrize("times", [1.6, 2.0, 10.0])
def test_one_linear_that_grew_is_a_regression(known, times):
    """Although its verdict is still agree, and every expectation held."""
    compared = known.compare(outcome(errors(times=times, of=[7])))
    assert compared.state == FAILED
    (grown,) = compared.regressions
    assert grown.layer == NAMES[7]
    assert grown.now == pytest.approx(times * grown.before, rel=1e-3)
    assert grown.allowed == pytest.approx(max(GROWTH * grown.before, 1.02 * FLOOR), rel=1e-3)


def test_all_linears_that_grew_a_little_are_a_regression(known):
    """None of them has grown by half, but noise averages out over twenty."""
    compared = known.compare(outcome(errors(times=1.35)))
    assert [r.layer for r in compared.regressions] == [ALL_LINEARS]
    assert compared.regressions[0].now == pytest.approx(1.35, rel=1e-3)
    assert known.compare(outcome(errors(times=1.2))).regressions == ()


def test_a_mean_needs_enough_linears():
    """Few linears say nothing together."""
    few = errors()[: ENOUGH - 1]
    known = Baseline({}).updated([outcome(few)])
    assert known.compare(outcome([TYPICAL * 1.05 * one for one in few])).regressions == ()


@pytest.mark.parametrize(("share", "floors"), [(SHARE, 1.02), (0.25, 2.0), (1.0, 3.0)])
def test_within_what_rounding_explains_nothing_is_a_regression(share, floors):
    """Up to the floor where many elements make up an error, up to three of them where one does, which way it rounds."""
    low = [FLOOR / 10, *errors()[1:]]
    known = Baseline({}).updated([outcome(low)])
    assert known.compare(outcome([FLOOR * floors * 0.99, *low[1:]], share=share)).regressions == ()
    (grown,) = known.compare(outcome([FLOOR * floors * 1.01, *low[1:]], share=share)).regressions
    assert grown.allowed == pytest.approx(floors * FLOOR, rel=1e-3)


def test_a_floor_that_was_raised_hides_nothing(known):
    """Errors are held against the floor of the baseline: a kernel that allows itself more noise has grown."""
    compared = known.compare(outcome(errors(times=8.0), floor=10 * FLOOR, kernel="exllama-reconstruct"))
    assert len(compared.regressions) == len(NAMES) + 1


def test_smaller_errors_are_no_regression(known):
    """Better is not worse."""
    assert known.compare(outcome(errors(times=0.1))).regressions == ()


class TestUpdate:
    """What --update-baseline writes."""

    def test_repeats_widen_the_range(self, known):
        """A kernel that spreads from run to run may spread as much again."""
        wide = known.updated([outcome(errors(times=2.5, of=[7]))])
        (entry,) = wide.cases["case"][1]
        assert entry.runs == 2
        assert entry.linears[NAMES[7]].high == pytest.approx(2.5 * entry.linears[NAMES[7]].low, rel=1e-3)
        assert known.compare(outcome(errors(times=2.4, of=[7]))).regressions != ()
        assert wide.compare(outcome(errors(times=5.0, of=[7]))).regressions == ()

    @pytest.mark.parametrize("change", [{"versions": {"torch": "3"}}, {"kernel": "marlin"}, {"fingerprint": "g"}])
    def test_what_is_not_comparable_is_replaced(self, known, change):
        """Other versions, another kernel, another checkpoint begin anew."""
        updated = known.updated([outcome(errors(times=3.0), **change)])
        (entry,) = updated.cases["case"][1]
        assert entry.runs == 1
        assert entry.linears[NAMES[0]].low == entry.linears[NAMES[0]].high

    def test_a_case_that_does_not_hold_is_not_learned(self, known):
        """What is broken must not become what is normal."""
        assert known.updated([outcome(errors(times=9), state=FAILED, held=False)]) == known

    def test_other_cases_stay(self, known):
        """A check of a few cases keeps what is known of the rest."""
        other = replace(outcome(errors()), name="other")
        assert set(known.updated([other]).cases) == {"case", "other"}

    def test_it_is_read_back_as_it_was_written(self, known, tmp_path):
        """Four digits, sorted, whole."""
        known.write(tmp_path / "sub" / "baseline.json")
        assert read_baseline(tmp_path / "sub" / "baseline.json") == known
        assert not list(tmp_path.glob("**/*.part"))


def test_what_the_baseline_does_not_know_is_said(known):
    """New cases, other checkpoints and other backends are told, and fail nothing."""
    assert known.compare(replace(outcome(errors()), name="new")).baseline == "not in the baseline"
    assert known.compare(outcome(errors(times=9), fingerprint="g")).baseline == "the baseline is of another checkpoint"
    more = outcome(errors())
    renamed = replace(more.figures[0], backend="sim-gptq")
    compared = known.compare(replace(more, figures=(*more.figures, renamed)))
    assert (compared.state, compared.baseline) == (HELD, "not in the baseline: sim-gptq, p")


DAMAGED = '{"gptq_diff_baseline": 1, "cases": {"a": {"fingerprint": "f", "entries": [3]}}}'


@pytest.mark.parametrize("text", ["", "[]", '{"gptq_diff_baseline": 2}', '{"gptq_diff_baseline": 1}', DAMAGED])
def test_a_file_that_is_no_baseline_is_refused(tmp_path, text):
    """Exit 2 with the file's name, never a comparison with nothing."""
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError, match=r"b\.json"):
        read_baseline(tmp_path / "b.json")


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    """A mistyped name would compare nothing and pass."""
    with pytest.raises(UsageError, match="does not exist"):
        read_baseline(tmp_path / "b.json")


MANY_ROWS = (
    ("[510, 40, 41, 42, 43, 44, 45, 46]", str([510, *range(40, 80)])), ("max_new_tokens = 4", "max_new_tokens = 1"),
)  # fmt: skip
LESS_EXACT = "model.layers.0.self_attn.k_proj"
HEALTHY = (("gain = 8", "gain = 1"), ('"sim-gptq"]', '"hf-fp16"]'), ('["hf-fp16", ', "["))


def measured(tmp_path, name, *changes):
    """A healthy run of hf-fp16 on the tiny model, as a case of one name."""
    text = BANG[: BANG.index("[[expect]]")] + '[[expect]]\nbackend = "hf-fp16"\nstatus = "agree"\n'
    case = read_case(write_case(tmp_path / name, text, *HEALTHY, *changes))
    found = run_case(case, out=tmp_path / f"{name}-out")
    assert found.state == HELD, [c.differences for c in found.checks]
    return found


def test_running_again_is_no_false_alarm(tmp_path, here):
    """Real runs: the same again, and with another number of threads, which splits sums in another way."""
    known = Baseline({}).updated([measured(tmp_path, "first")])
    assert known.compare(measured(tmp_path, "again")).regressions == ()
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert known.compare(measured(tmp_path, "threads")).regressions == ()
    finally:
        torch.set_num_threads(before)


class LessExact(Fp16Kernel):
    """The float16 kernel with rounding errors of 4e-4 more in the products of one linear."""

    def multiply(self, x_MK, linear):
        product = super().multiply(x_MK, linear)
        if linear.spec.name != LESS_EXACT:
            return product
        noise = torch.randn(product.y_MN.shape, generator=torch.Generator().manual_seed(3))
        return replace(product, y_MN=(product.y_MN.float() * (1 + 4e-4 * noise)).to(product.y_MN.dtype))


def test_a_real_growth_is_caught_while_the_verdict_agrees(tmp_path, here, monkeypatch):
    """One linear's products lose one bit: below the judge's threshold, and told by the baseline."""
    known = Baseline({}).updated([measured(tmp_path, "sound", *MANY_ROWS)])
    monkeypatch.setattr(hf, "make_kernel", lambda name: LessExact() if name == "fp16" else make_kernel(name))
    grown = known.compare(measured(tmp_path, "grown", *MANY_ROWS))
    assert [s.status for s in grown.seen] == ["agree", "agree"]
    assert grown.state == FAILED
    assert {r.backend for r in grown.regressions} == {"hf-fp16"}
    assert {r.layer for r in grown.regressions} == {LESS_EXACT}


def test_the_file_says_what_it_is(known, tmp_path):
    """Somebody reviews it in a commit."""
    known.write(tmp_path / "b.json")
    raw = json.loads((tmp_path / "b.json").read_text())
    assert raw["gptq_diff_baseline"] == 1
    entry = raw["cases"]["case"]["entries"][0]
    assert set(entry) == {"backend", "prompt", "status", "kernel", "versions", "runs", "linears"}


def test_the_page_has_the_figures_that_were_measured():
    """docs/cases.md says how much noise there is, as benchmarks.baseline_noise measured it, and that none is called."""
    root = Path(__file__).parents[2]
    found = json.loads((root / "benchmarks" / "results" / "baseline-noise.json").read_text())
    page = (root / "docs" / "cases.md").read_text()
    for name, one in found["models"].items():
        assert one["regressions"] == 0
        sizes = f"{one['largest']:.2f} | {one['floors']:.2f} | {one['mean']:.3f}"
        assert f"| {name} | {one['comparisons']:,} | {sizes} | 0 |" in page
    assert (found["growth"], found["typical"]) == (GROWTH, TYPICAL)
    assert f"{GROWTH} times the largest that the baseline knows" in page
    assert f"passes {TYPICAL}, for {ENOUGH} linears or more" in page
