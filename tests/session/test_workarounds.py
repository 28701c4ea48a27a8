"""Workarounds in the main job: a padded prompt in the same load, and a fixed checkpoint in one of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.session.in_process import asked, result, run

pytestmark = pytest.mark.usefixtures("here")


def test_padding_and_a_fixed_checkpoint_are_tried_and_help(shifted_model: Path, tmp_path: Path) -> None:
    """sim-gptq overflows with 4 tokens; with 51, and on the fixed checkpoint, it does not."""
    wanted = asked(shifted_model, "hf-fp16,sim-gptq", experiments="all", workarounds="all")
    report = run(wanted, tmp_path / "run")
    found = {w.name: w for w in result(report, "sim-gptq").workarounds}
    assert found["padded prompt"].works, found["padded prompt"].detail
    assert "47 times a line break" in found["padded prompt"].detail
    assert found["fixed checkpoint"].works, found["fixed checkpoint"].detail
    assert "backend hf-fp16" in found
    assert not result(report, "hf-fp16").workarounds
    assert not list((tmp_path / "run" / "workarounds").rglob("*.safetensors"))


def test_without_being_asked_only_the_runs_own_backends_are_told(shifted_model: Path, tmp_path: Path) -> None:
    """Simulators are no live kernels; nothing is run for them unless it is asked for."""
    report = run(asked(shifted_model, "hf-fp16,sim-exllama"), tmp_path / "run")
    assert [(w.name, w.tried) for w in result(report, "sim-exllama").workarounds] == [
        ("bfloat16", False), ("backend hf-fp16", True),
    ]  # fmt: skip
