"""Opening a run that has ended: with its checkpoints where they are, and saying why where they are not."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from gptq_diff.errors import CannotJudge, CaptureError, UsageError
from gptq_diff.session.opened import open_alone, open_run
from tests.session.damage import damaged_copy
from tests.session.in_process import asked, run

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def root(tmp_path: Path, small_model: Path) -> Path:
    """A run of a copy of a model, which may move or change."""
    shutil.copytree(small_model, tmp_path / "model")
    run(asked(tmp_path / "model", "hf-fp16", max_new_tokens=1), tmp_path / "run")
    return tmp_path / "run"


def test_what_was_loaded_is_what_the_judge_reads(root: Path) -> None:
    """One checkpoint, unless --reference-model named another."""
    opened = open_run(root)
    loaded, judge = opened.checkpoints()
    assert loaded is judge
    assert loaded.path == root.parent / "model"
    assert (opened.interrupted, opened.missing) == (False, "")


def test_a_checkpoint_that_is_gone_or_changed_is_told(root: Path, small_model: Path) -> None:
    """The run still opens; what needs the checkpoint ends with a reason, and a copy given by hand serves."""
    moved = root.parent / "moved"
    shutil.move(root.parent / "model", moved)
    opened = open_run(root)
    assert opened.missing == f"the checkpoint {root.parent / 'model'} is not here"
    with pytest.raises(CannotJudge, match="is not here"):
        opened.checkpoints()
    assert open_run(root, str(moved)).missing == ""
    shutil.copytree(damaged_copy(small_model, root.parent / "other"), root.parent / "model")
    assert "another one than in this run" in open_run(root).missing


def test_another_checkpoint_given_by_hand_is_refused(root: Path, small_model: Path) -> None:
    """And so is a reference model for a run that had none."""
    other = damaged_copy(small_model, root.parent / "other")
    with pytest.raises(UsageError, match="its fingerprint differs"):
        open_run(root, str(other))
    with pytest.raises(UsageError, match="had no --reference-model"):
        open_run(root, None, str(root.parent / "model"))


def test_a_run_that_was_interrupted_is_opened_as_far_as_it_came(root: Path) -> None:
    """Its missing captures become a skipped backend with the reason."""
    record = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps({**record, "state": "capturing"}))
    shutil.rmtree(next((root / "captures" / "hf-fp16").iterdir()))
    opened = open_run(root)
    assert opened.interrupted
    failures = {b.name: b.failure for b in opened.record.backends}
    assert failures["hf-fp32"] is None
    assert "interrupted" in (failures["hf-fp16"] or "")


def test_nobody_else_may_write_meanwhile(root: Path) -> None:
    """While it is open alone a second one is refused, and afterwards it is not."""
    with open_alone(root), pytest.raises(UsageError, match="is in use"), open_alone(root):
        pass
    with (root / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert open_run(root).missing == ""
    with open_alone(root) as opened:
        assert opened.run.root == root


@pytest.mark.parametrize("opening", [open_run, lambda root: open_alone(root).__enter__()], ids=["run", "alone"])
def test_a_folder_without_a_run(tmp_path: Path, opening: object) -> None:
    """A sentence, and nothing is made there."""
    with pytest.raises((CaptureError, UsageError)):
        opening(tmp_path)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []
