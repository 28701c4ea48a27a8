"""A bisection on disk: every trial kept, gone on with after an interruption, never mixed with another question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.bisection.record import FILE, Question, Trial, claimed
from gptq_diff.bisection.run import Bisected, bisect
from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Verdict
from gptq_diff.errors import UsageError

QUESTION = Question("vllm", "0", "7", "kernels", "case", "digest", None)
VERSIONS = tuple(str(i) for i in range(8))


class Told:
    """A watcher that keeps what it was told, as lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begins(self, version: str) -> None:
        self.lines.append(f"{version}?")

    def ended(self, trial: Trial, *, known: bool) -> None:
        self.lines.append(f"{trial.version} {trial.verdict.kind}{' (known)' if known else ''}")


def judge(version: str) -> Verdict:
    """Bad from 3 on; 4 cannot be judged."""
    if version == "4":
        return Verdict(UNJUDGED, "it does not install")
    return Verdict(BAD if int(version) >= 3 else GOOD, "made up")


def run(directory: Path, told: Told, judge_: object = judge, **how: bool) -> Bisected:
    """In that directory."""
    with claimed(directory, QUESTION, **{"overwrite": False, "retry": False, **how}) as record:
        return bisect(VERSIONS, judge_, record, told)  # type: ignore[arg-type]


def test_trials_are_told_and_kept(tmp_path: Path) -> None:
    """In the order in which they were made."""
    told = Told()
    done = run(tmp_path / "b", told)
    assert (done.found.last_good, done.found.first_bad) == ("2", "3")
    assert told.lines[:6] == ["0?", "0 good", "7?", "7 bad", "3?", "3 bad"]
    raw = json.loads((tmp_path / "b" / FILE).read_text())
    assert [trial["version"] for trial in raw["trials"]] == [trial.version for trial in done.trials]
    assert raw["question"]["by"] == "kernels"


def test_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    """Whatever was finished counts; the release at hand is tried again."""

    def interrupted(version: str) -> Verdict:
        if version == "3":
            raise KeyboardInterrupt
        return judge(version)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", Told(), interrupted)
    told = Told()
    done = run(tmp_path / "b", told)
    assert told.lines[:3] == ["0 good (known)", "7 bad (known)", "3?"]
    assert (done.found.last_good, done.found.first_bad) == ("2", "3")
    told = Told()
    assert run(tmp_path / "b", told).found == done.found
    assert not [line for line in told.lines if line.endswith("?")], "a finished one is only told again"


def test_what_could_not_be_judged_is_tried_again_where_asked(tmp_path: Path) -> None:
    """A network that was down is not the release's fault."""
    versions = ("2", "4", "7")

    def down(version: str) -> Verdict:
        return Verdict(UNJUDGED, "no network") if version == "4" else judge(version)

    with claimed(tmp_path / "b", QUESTION, overwrite=False, retry=False) as record:
        assert bisect(versions, down, record, Told()).found.between == ("4",)
    up = {"2": GOOD, "4": GOOD, "7": BAD}
    with claimed(tmp_path / "b", QUESTION, overwrite=False, retry=True) as record:
        done = bisect(versions, lambda version: Verdict(up[version], ""), record, Told())
    assert (done.found.last_good, done.found.between) == ("4", ())
    assert [trial.version for trial in done.trials] == ["2", "7", "4"]


def test_another_question_needs_another_directory(tmp_path: Path) -> None:
    """Or --overwrite; what differs is named."""
    run(tmp_path / "b", Told())
    other = replace(QUESTION, case="another")
    with (
        pytest.raises(UsageError, match=r"of another question: case was 'case'"),
        claimed(tmp_path / "b", other, overwrite=False, retry=False),
    ):
        pass
    with claimed(tmp_path / "b", other, overwrite=True, retry=False) as record:
        assert record.trials == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """With --overwrite too."""
    (tmp_path / "theirs").write_text("keep")
    with pytest.raises(UsageError, match="is no bisection"), claimed(tmp_path, QUESTION, overwrite=True, retry=False):
        pass
    with (
        pytest.raises(UsageError, match="is no bisection"),
        claimed(tmp_path / "theirs", QUESTION, overwrite=True, retry=False),
    ):
        pass
    assert (tmp_path / "theirs").read_text() == "keep"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    """The second says so, and the first is not disturbed."""
    with claimed(tmp_path / "b", QUESTION, overwrite=False, retry=False) as record:
        with (
            pytest.raises(UsageError, match="in use by another bisection"),
            claimed(tmp_path / "b", QUESTION, overwrite=True, retry=False),
        ):
            pass
        record.add(Trial("0", Verdict(GOOD, ""), 1.0))
    assert json.loads((tmp_path / "b" / FILE).read_text())["trials"]


@pytest.mark.parametrize("content", ["{", '{"question": {}}', '{"question": {"package": "vllm"}, "trials": []}', "[]"])
def test_a_damaged_record_is_said(content: str, tmp_path: Path) -> None:
    """And can be begun anew."""
    run(tmp_path / "b", Told())
    (tmp_path / "b" / FILE).write_text(content)
    with pytest.raises(UsageError, match="is damaged"):
        run(tmp_path / "b", Told())
    run(tmp_path / "b", Told(), overwrite=True)
