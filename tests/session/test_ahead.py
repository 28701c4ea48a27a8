"""Workers that are started while the one before them is at work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.launch import Load, Outcome
from gptq_diff.session import capture_all
from gptq_diff.session.capture_all import start_record
from gptq_diff.session.loads import load_of, loads_of
from tests.session.in_process import asked, run_here


class Recorded:
    """In place of workers that are started early: the story of which were, and what became of them."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.fails_at = ""

    def early(self, load: Load) -> Any:
        name = load.spec.jobs[0].backend
        self.story.append(f"{name} starts")
        outer = self

        class One:
            taken = False

            def end(self) -> None:
                if not self.taken:
                    self.taken = True
                    outer.story.append(f"{name} is ended")

        return One()

    def run_load(self, load: Load, listen: Any, follow_up: Any, early: Any = None) -> list[Outcome]:
        name = load.spec.jobs[0].backend
        self.story.append(f"{name} loads{'' if early is None else ', started before'}")
        if early is not None:
            early.taken = True
        if name == self.fails_at:
            raise KeyboardInterrupt
        return run_here(load, listen, follow_up)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(capture_all, "Early", found.early)
    monkeypatch.setattr(capture_all, "run_load", found.run_load)
    return found


def capture(model: Path, out: Path, *, ahead: bool, first: Any = None, **settings: Any) -> None:
    wanted = asked(model, f"hf-fp32,sim-exllama@{out.parent / 'other-python'},hf-fp16", **settings)
    claimed = RunDir.create(out, overwrite=False)
    with open_checkpoint(wanted.model) as checkpoint:
        record = start_record(wanted, checkpoint, checkpoint)
        capture_all.capture_all(wanted, claimed, record, lambda backend, event: None, ahead=ahead, first=first)
    claimed.release()


@pytest.fixture
def python(tmp_path: Path) -> None:
    """Another interpreter, so that there are three loads; nobody starts it."""
    (tmp_path / "other-python").symlink_to(sys.executable)


@pytest.mark.usefixtures("python")
def test_one_is_always_ahead(small_model: Path, tmp_path: Path, recorded: Recorded) -> None:
    """Never two; the first load has nothing to overlap with."""
    capture(small_model, tmp_path / "run", ahead=True)
    assert recorded.story == [
        "sim-exllama starts", "hf-fp32 loads", "hf-fp16 starts", "sim-exllama loads, started before",
        "hf-fp16 loads, started before",
    ]  # fmt: skip


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("ahead", [True, False])
def test_the_first_load_takes_a_worker_that_is_on_its_way(
    small_model: Path, tmp_path: Path, recorded: Recorded, ahead: bool
) -> None:
    """Started before this process had imported what it needs, also where engines need all cores later."""
    one = recorded.early(load_of(asked(small_model), RunDir(tmp_path), tmp_path, loads_of(asked(small_model))[0], {}))
    capture(small_model, tmp_path / "run", ahead=ahead, first=one)
    assert recorded.story[0] == "hf-fp32 starts"
    assert [line for line in recorded.story if line.startswith("hf-fp32")][1:] == ["hf-fp32 loads, started before"]
    assert len(recorded.story) == (6 if ahead else 4)


@pytest.mark.usefixtures("python")
def test_none_is_where_nobody_asked_for_it(small_model: Path, tmp_path: Path, recorded: Recorded) -> None:
    """As on a machine without a GPU."""
    capture(small_model, tmp_path / "run", ahead=False)
    assert recorded.story == ["hf-fp32 loads", "sim-exllama loads", "hf-fp16 loads"]


@pytest.mark.usefixtures("python")
def test_what_waits_is_ended_when_the_run_is(small_model: Path, tmp_path: Path, recorded: Recorded) -> None:
    """Ctrl-C while one is at work, and the next one waits."""
    recorded.fails_at = "sim-exllama"
    with pytest.raises(KeyboardInterrupt):
        capture(small_model, tmp_path / "run", ahead=True)
    assert recorded.story[-2:] == ["sim-exllama loads, started before", "hf-fp16 is ended"]


@pytest.mark.usefixtures("python")
def test_one_whose_load_is_not_made_is_ended(
    small_model: Path, tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference did not finish, so there is nothing to force on the others."""
    failing = recorded.run_load

    def no_reference(load: Load, listen: Any, follow_up: Any, early: Any = None) -> list[Outcome]:
        failing(load, listen, follow_up, early)
        return [Outcome("hf-fp32", failure="it broke")]

    monkeypatch.setattr(capture_all, "run_load", no_reference)
    capture(small_model, tmp_path / "run", ahead=True, teacher_force=True)
    assert recorded.story == [
        "sim-exllama starts", "hf-fp32 loads", "hf-fp16 starts", "sim-exllama is ended", "hf-fp16 is ended",
    ]  # fmt: skip
