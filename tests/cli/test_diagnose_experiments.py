"""`diagnose RUN --experiments`: what the command line makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptq_diff.session import live_again
from tests.cli.test_compare import Program
from tests.session.in_process import asked, run, run_here

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def finished(shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a failing simulator, and workers in this process."""
    monkeypatch.setattr(live_again, "run_load", run_here)
    run(asked(shifted_model, "sim-gptq", max_new_tokens=1), tmp_path / "run")
    return tmp_path / "run"


def test_backends_are_experimented_on_by_name(program: Program, finished: Path) -> None:
    """Simulators too, where they are named."""
    code, out, _ = program("diagnose", finished, "--experiments", "--backends", "sim-gptq", "--json")
    assert code == 1
    made = {r["backend"]: [e["name"] for e in r["experiments"]] for r in json.loads(out)["results"]}
    assert len(made["sim-gptq"]) == 7
    assert made["hf-fp32"] == []


def test_without_a_live_kernel_nothing_is_started(program: Program, finished: Path) -> None:
    """The transformers engine's are ours."""
    code, out, err = program("diagnose", finished, "--experiments", "--json")
    assert code == 1
    assert all(r["experiments"] == [] for r in json.loads(out)["results"])
    assert "once more" not in err


def test_a_backend_that_did_not_run_is_a_usage_error(program: Program, finished: Path) -> None:
    code, _, err = program("diagnose", finished, "--backends", "sim-exllama")
    assert code == 2
    assert "this run has no capture of sim-exllama" in err
