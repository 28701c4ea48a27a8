"""The disk that a run needs is known before it runs, and is what it then takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.session import room
from tests.session.in_process import FIRST, SECOND, asked, run


@pytest.mark.usefixtures("here")
def test_what_is_foretold_is_what_is_written(small_model: Path, tmp_path: Path) -> None:
    """Two prompts, float32 and float16, repeats and decode steps: within a fifth, headers and biases beside it."""
    wanted = asked(small_model, "hf-fp16,sim-gptq", (FIRST, SECOND), repeats=2, capture="full")
    run(wanted, tmp_path / "run")
    written = sum(f.stat().st_size for f in (tmp_path / "run" / "captures").rglob("block-*.safetensors"))
    with open_checkpoint(small_model) as checkpoint:
        foretold = room.capture_bytes(wanted, checkpoint.layers)
    assert foretold == pytest.approx(written, rel=0.2)
    assert foretold <= written


@pytest.mark.usefixtures("here")
def test_a_run_that_cannot_fit_is_refused_at_once(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with both sizes, before a worker starts."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UsageError, match=r"stores 0\.0 GB of tensors until they are judged, and .* has 0\.0 GB free"):
        run(asked(small_model), tmp_path / "run")
    assert not (tmp_path / "run" / "captures").exists()


def test_a_disk_that_does_not_say_stops_nobody(small_model: Path, tmp_path: Path) -> None:
    """No figure, no refusal."""
    with open_checkpoint(small_model) as checkpoint:
        room.check_room(asked(small_model), checkpoint.layers, tmp_path / "not there")
