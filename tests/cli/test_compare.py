"""`gptq-diff compare RUN` on the command line; what it judges is proved in tests/session/test_again.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def finished(program: Program, shifted_model: Path, tmp_path: Path) -> Path:
    """A run of sim-exllama, with its model in a place of its own."""
    shutil.copytree(shifted_model, tmp_path / "model")
    arguments = ("--backends", "sim-exllama", "--out", tmp_path / "run", "--max-new-tokens", 2, "--quiet")
    program(
        "run", "--model", tmp_path / "model", "--prompt-file", "-", *arguments, stdin='{"token_ids": [510, 3, 4]}\n'
    )
    return tmp_path / "run"


def test_the_same_report_again(program: Program, finished: Path) -> None:
    """Exit code and JSON are those of the run."""
    before = (finished / "report.json").read_text()
    code, out, err = program("compare", finished, "--json")
    assert (code, err) == (1, "")
    assert out == before == (finished / "report.json").read_text()


def test_without_the_checkpoint_it_says_what_it_used(program: Program, finished: Path) -> None:
    shutil.rmtree(finished.parent / "model")
    code, out, err = program("compare", finished)
    assert (code, out) == (1, "")
    assert "what is stored is used" in err
    assert "verdict: overflow" in err
    assert json.loads(program("compare", finished, "--json")[1])["verdict"]["status"] == "overflow"


def test_a_wrong_checkpoint_is_refused(program: Program, finished: Path, small_model: Path) -> None:
    code, out, err = program("compare", finished, "--model", small_model)
    assert (code, out) == (2, "")
    assert "its fingerprint differs" in err


def test_a_directory_that_is_no_run(program: Program, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        code, _, err = program("compare", place)
        assert code == 2
        assert "no run.json" in err
