"""`gptq-diff reduce`: what the command line makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_compare import Program
from tests.session.in_process import asked, run

pytestmark = pytest.mark.usefixtures("here")


def test_a_failing_run(program: Program, shifted_model: Path, tmp_path: Path) -> None:
    """Exit 0, what fails and what passes in one line each, and where the script lies; the same as JSON."""
    run(asked(shifted_model, "sim-exllama", max_new_tokens=1), tmp_path / "run")
    code, out, err = program("reduce", tmp_path / "run")
    assert (code, out) == (0, "")
    assert "to 1 x 128 x 8 with 1 non-zero input and 1 code" in " ".join(err.split())
    assert "fails: x[0, " in err
    assert "gives inf" in err
    assert "predicted, not yet seen on a GPU" in err
    code, out, err = program("reduce", tmp_path / "run", "--json", "-o", tmp_path / "other")
    assert (code, err) == (0, "")
    assert json.loads(out)["shape"] == [1, 128, 8]
    assert (tmp_path / "other" / "repro.py").is_file()


def test_a_healthy_run(program: Program, small_model: Path, tmp_path: Path) -> None:
    run(asked(small_model, "sim-exllama", max_new_tokens=1), tmp_path / "run")
    code, _, err = program("reduce", tmp_path / "run")
    assert code == 1
    assert "nothing to reduce: every linear is right" in err


def test_no_run(program: Program, tmp_path: Path) -> None:
    code, _, err = program("reduce", tmp_path)
    assert code == 2
    assert "is not a run of gptq-diff" in err
