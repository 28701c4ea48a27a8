"""Many cases: exit codes, the self-test, shards, and what is not begun; cases themselves are played here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gptq_diff.cases.baseline import Baseline
from gptq_diff.cases.check import CheckAsked, check, shard
from gptq_diff.cases.check_dir import CheckDir
from gptq_diff.cases.expectations import check_expectations
from gptq_diff.cases.library import find_case
from gptq_diff.cases.read import read_case
from gptq_diff.cases.self_test import candidates, drawn
from gptq_diff.errors import UsageError
from gptq_diff.records import ERROR, FAILED, HELD, SKIPPED, CaseOutcome, Figures, LinearError, Seen
from tests.cases.written import BANG, write_case


def as_expected(case):
    """An outcome in which everything happened as the case expects it."""
    seen = tuple(
        Seen(e.backend, e.prompt, e.status, e.layer, e.cause, bool(e.collapsed), 28, e.said) for e in case.expect
    )
    return CaseOutcome(case.name, HELD, checks=check_expectations(case.expect, seen), seen=seen)


class Played:
    """Runs that come out as told: case -> outcome, all others as expected."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.tasks = []

    def __call__(self, tasks, logs, finished, *, jobs, keep_going):
        self.tasks = tasks
        found = []
        for place, (case, _) in enumerate(tasks):
            if not keep_going and any(one is not None and one.bad for one in found):
                found.append(None)
                continue
            found.append(self.outcomes.get(case.name.replace("-", "_"), as_expected(case)))
            finished(place, found[-1])
        return found


@pytest.fixture
def cases(tmp_path):
    return tuple(
        read_case(write_case(tmp_path / name, BANG, ('name = "bang"', f'name = "{name}"'))) for name in ("a", "b", "c")
    )


def checked(tmp_path, asked, played):
    told = []
    place = CheckDir.claim(tmp_path / "check", overwrite=True)
    try:
        report = check(asked, place, lambda name, outcome: told.append(name), played)
    finally:
        place.release()
    return report, told


STATES = {
    (HELD, HELD, HELD): 0, (HELD, SKIPPED, SKIPPED): 0, (FAILED, HELD, HELD): 1, (ERROR, HELD, HELD): 3,
    (ERROR, FAILED, HELD): 1, (SKIPPED, SKIPPED, SKIPPED): 3, ("usage", FAILED, HELD): 2, ("usage", ERROR, HELD): 2,
}  # fmt: skip


@pytest.mark.parametrize("states", STATES)
def test_exit_codes(tmp_path, cases, states):
    """2 before 1 before 3; a check in which nothing was compared could not judge."""
    outcomes = {
        case.name: CaseOutcome(case.name, ERROR if state == "usage" else state, "why", usage=state == "usage")
        for case, state in zip(cases, states)
    }  # fmt: skip
    report, told = checked(tmp_path, CheckAsked(cases), Played(**outcomes))
    assert report.exit_code == STATES[states]
    assert told == ["self-test", "a", "b", "c"]


def test_the_self_test_comes_with_every_check(tmp_path, cases):
    """One planted fault, drawn by the seed, found."""
    played = Played()
    report, _ = checked(tmp_path, CheckAsked(cases, seed=3), played)
    assert report.self_test.sees
    assert report.self_test.case == candidates()[3] == played.tasks[0][0].name
    assert report.exit_code == 0


def test_consecutive_seeds_plant_every_kind():
    """A check a day goes through all of them; each is a fault in a tiny model."""
    names = [drawn(seed).name for seed in range(2 * len(candidates()))]
    assert set(names) == set(candidates())
    assert len(candidates()) >= 10
    assert all(drawn(seed).model.build == "tiny-qwen2" and drawn(seed).fault for seed in range(len(candidates())))


BLIND = {
    "it says that all agree": {"status": "agree", "layer": None, "cause": None, "collapsed": False},
    "it names another layer": {"layer": "model.layers.0.mlp.up_proj"},
    "it names another cause": {"cause": "unknown"},
}


@pytest.mark.parametrize("how", BLIND)
def test_a_guard_that_does_not_see_ends_with_3(tmp_path, cases, how):
    """Though every case held: green would mean nothing."""
    planted = drawn(0)
    seen = tuple(replace(s, **BLIND[how]) if s.backend == "hf-fp16" else s for s in as_expected(planted).seen)
    blind = CaseOutcome(planted.name, FAILED, checks=check_expectations(planted.expect, seen), seen=seen)
    report, _ = checked(tmp_path, CheckAsked(cases), Played(**{planted.name.replace("-", "_"): blind}))
    assert not report.self_test.sees
    assert report.exit_code == 3
    assert "expected" in report.self_test.reason


def test_a_self_test_that_could_not_run_ends_with_3(tmp_path, cases):
    """Nobody knows whether the guard sees."""
    planted = drawn(0)
    broken = CaseOutcome(planted.name, ERROR, "out of memory")
    report, _ = checked(tmp_path, CheckAsked(cases), Played(**{planted.name.replace("-", "_"): broken}))
    assert (report.exit_code, report.self_test.reason) == (3, "out of memory")


def test_a_checker_that_finds_everything_in_order_is_found_out(tmp_path, cases, monkeypatch):
    """Where expectations hold whatever happens, the self-test does not: health expected of a fault must be refused."""
    from gptq_diff.cases import self_test

    monkeypatch.setattr(self_test, "check_expectations", lambda expected, seen: ())
    report, _ = checked(tmp_path, CheckAsked(cases), Played())
    assert (report.self_test.sees, report.exit_code) == (False, 3)
    assert "expectations are not checked" in report.self_test.reason


def test_a_failure_beats_a_blind_guard(tmp_path, cases):
    """1 before 3."""
    planted = drawn(0)
    broken = CaseOutcome(planted.name, ERROR, "out of memory")
    outcomes = {planted.name.replace("-", "_"): broken, "a": CaseOutcome("a", FAILED)}
    report, _ = checked(tmp_path, CheckAsked(cases), Played(**outcomes))
    assert report.exit_code == 1


def test_without_keep_going_the_rest_is_not_begun(tmp_path, cases):
    """And is named."""
    asked = CheckAsked(cases, keep_going=False)
    report, told = checked(tmp_path, asked, Played(b=CaseOutcome("b", FAILED)))
    assert ([c.name for c in report.cases], report.not_begun) == (["a", "b"], ("c",))
    assert told == ["self-test", "a", "b"]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_share_out_all_cases(of):
    """Each case in one shard, whatever their number."""
    cases = [find_case("tiny-qwen2-bang")] * 5
    assert sum(len(shard(cases, number, of)) for number in range(1, of + 1)) == 5
    assert {len(shard(cases, number, of)) for number in range(1, of + 1)} <= {5 // of, 5 // of + 1}


def test_a_regression_fails_a_case_that_held(tmp_path, cases):
    """The baseline is looked at when all expectations hold."""

    def outcome(error):
        figures = Figures("hf-fp16", "short", "agree", {}, {}, {"l": LinearError(error, 4e-4, 1e-4)})
        return CaseOutcome("a", HELD, figures=(figures,), fingerprint="f")

    known = Baseline({}).updated([outcome(5e-4)])
    asked = CheckAsked(cases, baseline=known, baseline_file="b.json")
    report, _ = checked(tmp_path, asked, Played(a=outcome(9e-4)))
    assert (report.cases[0].state, report.exit_code) == (FAILED, 1)
    report, _ = checked(tmp_path, asked, Played(a=outcome(6e-4)))
    assert report.exit_code == 0


class TestCheckDir:
    """Whose directory it is, and whether a check goes on in it."""

    def claim(self, root, *, overwrite=False):
        place = CheckDir.claim(root, overwrite=overwrite)
        place.release()
        return place

    def test_a_new_one_begins_clean(self, tmp_path):
        assert not self.claim(tmp_path / "new").resumed

    def test_an_interrupted_one_goes_on(self, tmp_path):
        self.claim(tmp_path / "c")
        kept = tmp_path / "c" / "cases" / "a" / "outcome.json"
        kept.parent.mkdir(parents=True)
        kept.write_text("{}")
        assert self.claim(tmp_path / "c").resumed
        assert kept.exists()

    def test_a_finished_one_is_left_alone(self, tmp_path):
        place = CheckDir.claim(tmp_path / "c", overwrite=False)
        place.finish({"cases": []})
        place.release()
        with pytest.raises(UsageError, match="already holds a finished check"):
            self.claim(tmp_path / "c")
        assert json.loads((tmp_path / "c" / "check.json").read_text())["state"] == "finished"

    @pytest.mark.parametrize("finished", [True, False])
    def test_overwrite_begins_clean(self, tmp_path, finished):
        place = CheckDir.claim(tmp_path / "c", overwrite=False)
        if finished:
            place.finish({})
        place.release()
        stale = tmp_path / "c" / "cases" / "a" / "outcome.json"
        stale.parent.mkdir(parents=True)
        stale.write_text("{}")
        assert not self.claim(tmp_path / "c", overwrite=True).resumed
        assert not stale.exists()

    def test_what_is_not_ours_is_never_touched(self, tmp_path):
        (tmp_path / "mine.txt").write_text("x")
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="no check of gptq-diff"):
                self.claim(tmp_path, overwrite=overwrite)
        assert (tmp_path / "mine.txt").read_text() == "x"

    def test_two_checks_in_one_directory(self, tmp_path):
        place = CheckDir.claim(tmp_path / "c", overwrite=False)
        with pytest.raises(UsageError, match="another check is at work"):
            CheckDir.claim(tmp_path / "c", overwrite=True)
        place.release()
        self.claim(tmp_path / "c")
