"""Captures that are judged behind the loads that follow: when, that the report is the same, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import Key, judge_captures
from gptq_diff.errors import CaptureError
from gptq_diff.launch import FollowUp, Listener, Load, Outcome
from gptq_diff.records import Judgement
from gptq_diff.session import capture_all, live_subjects, main_job, stages
from gptq_diff.session.again import compare_again
from gptq_diff.session.asked import Asked
from gptq_diff.session.behind import Behind, GoOn, Work
from gptq_diff.session.headroom_file import headroom_file
from gptq_diff.session.sweep import Lengths
from tests.session.damage import damaged_copy
from tests.session.in_process import FIRST, SECOND, asked, run, run_here

SOON = 60
"""Seconds after which what should happen has not."""


class Room:
    """Whether there is room to judge behind, and the threads that did.

    An engine in this process changes torch's defaults while it loads, which no engine of a real run does: so loads
    wait for the threads here.
    """

    def __init__(self) -> None:
        self.there = True
        self.given: list[threading.Event] = []

    def behind(self) -> Behind:
        """One that notes every piece of work, and when it has ended."""
        given = self.given

        class Noted(Behind):
            def later(self, work: Work) -> None:
                ended = threading.Event()

                def noted(go_on: GoOn) -> None:
                    try:
                        work(go_on)
                    finally:
                        ended.set()

                given.append(ended)
                super().later(noted)

        return Noted()

    def run_load(
        self, load: Load, listen: Listener, follow_up: FollowUp | None = None, early: object = None
    ) -> list[Outcome]:
        assert all(ended.wait(SOON) for ended in self.given)
        return run_here(load, listen, follow_up)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    found = Room()
    monkeypatch.setattr(main_job, "room_beside", lambda *_: found.there)
    monkeypatch.setattr(main_job, "Behind", found.behind)
    monkeypatch.setattr(capture_all, "run_load", found.run_load)
    return found


@pytest.fixture
def loads(tmp_path: Path) -> str:
    """Three loads: another interpreter, that nobody starts, has its own."""
    other = tmp_path / "other-python"
    other.symlink_to(sys.executable)
    return f"sim-exllama@{other},sim-gptq,hf-fp16"


def told(root: Path) -> dict[str, Any]:
    """report.json, and every file of judgements, findings and headroom, without seconds and the time of day."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    found = {"report": timeless(json.loads((root / "report.json").read_text()))}
    for folder in ("judged", "diagnosed", "experiments"):
        for file in sorted((root / folder).rglob("*.json*")):
            found[str(file.relative_to(root))] = file.read_text()
    return found


def both(wanted: Asked, tmp_path: Path, room: Room) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told without room, and with it."""
    found = []
    for name, there in (("plain", False), ("behind", True)):
        room.there = there
        run(wanted, tmp_path / name)
        found.append(told(tmp_path / name))
        assert bool(room.given) is there
    return found[0], found[1]


class TestTheReportIsTheSame:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"experiments": "off", "workarounds": "off"},
            {"experiments": "all"},
            {"repeats": 2},
            {"teacher_force": True},
            {"reference": "hf-fp16"},
            {"sweep": Lengths(2, 4)},
            {"capture": "stats"},
        ],
        ids=str,
    )
    def test_whatever_was_asked(
        self, shifted_model: Path, tmp_path: Path, loads: str, room: Room, settings: dict[str, Any]
    ) -> None:
        """Bit for bit, in every file."""
        plain, behind = both(asked(shifted_model, loads, (FIRST, SECOND), **settings), tmp_path, room)
        assert plain == behind

    def test_with_padded_prompts(
        self, shifted_model: Path, tmp_path: Path, loads: str, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are judged behind as well: no engine waits for that."""
        monkeypatch.setattr(live_subjects, "SIMULATED", "none")
        plain, behind = both(asked(shifted_model, loads), tmp_path, room)
        assert plain == behind
        tried = {w["name"] for r in behind["report"]["results"] for w in r["workarounds"]}
        assert "padded prompt" in tried

    def test_with_a_sound_checkpoint_beside_a_damaged_one(
        self, small_model: Path, tmp_path: Path, loads: str, room: Room
    ) -> None:
        damaged = damaged_copy(small_model, tmp_path / "damaged")
        plain, behind = both(asked(damaged, loads, reference_model=small_model), tmp_path, room)
        assert plain == behind

    def test_without_the_reference(
        self, shifted_model: Path, tmp_path: Path, loads: str, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It failed: the others are judged by themselves."""

        def failing(load: Load, *others: Any) -> list[Outcome]:
            if load.spec.jobs[0].backend == "hf-fp32":
                return [Outcome("hf-fp32", failure="its worker was killed")]
            return room.run_load(load, *others)

        monkeypatch.setattr(capture_all, "run_load", failing)
        plain, behind = both(asked(shifted_model, loads), tmp_path, room)
        assert plain == behind
        assert [s["backend"] for s in behind["report"]["skipped_backends"]] == ["hf-fp32"]

    def test_compared_again(self, shifted_model: Path, tmp_path: Path, loads: str, room: Room) -> None:
        """From its directory alone."""
        both(asked(shifted_model, loads), tmp_path, room)
        for name in ("plain", "behind"):
            compare_again(tmp_path / name, None, None, allow_skip=False, say=lambda _: None)
        assert told(tmp_path / "plain") == told(tmp_path / "behind")


class Replayed:
    """Loads that only bring what they gave in an earlier run: no engine is at work in this process."""

    def __init__(self, earlier: Path, outcomes: dict[str, list[Outcome]]) -> None:
        self._earlier = earlier
        self._outcomes = outcomes
        self.at: dict[str, Callable[[Path], None]] = {}

    def run_load(self, load: Load, listen: Listener, *_: object) -> list[Outcome]:
        first = load.spec.jobs[0]
        root = Path(first.out).parents[2]
        if first.backend in self.at:
            self.at[first.backend](root)
        for backend in dict.fromkeys(job.backend for job in load.spec.jobs):
            shutil.copytree(self._earlier / "captures" / backend, root / "captures" / backend)
        return deepcopy(self._outcomes[first.backend])


@pytest.fixture
def wanted(shifted_model: Path, loads: str) -> Asked:
    return asked(shifted_model, loads)


@pytest.fixture
def replayed(wanted: Asked, tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> Replayed:
    """Of a run without room; from now on there is."""
    outcomes: dict[str, list[Outcome]] = {}

    def noted(load: Load, *others: Any) -> list[Outcome]:
        outcomes[load.spec.jobs[0].backend] = found = room.run_load(load, *others)
        return deepcopy(found)

    monkeypatch.setattr(capture_all, "run_load", noted)
    room.there = False
    run(wanted, tmp_path / "plain")
    room.there = True
    found = Replayed(tmp_path / "plain", outcomes)
    monkeypatch.setattr(capture_all, "run_load", found.run_load)
    return found


def judged_and_measured(root: Path, backend: str) -> bool:
    run_dir = RunDir(root)
    return run_dir.judged(backend, "p1").is_file() and headroom_file(run_dir, (backend, "p1")).is_file()


def wait_for(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + SOON
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    return what()


class TestWhen:
    def test_the_reference_is_judged_while_the_next_load_is_at_work(
        self, wanted: Asked, tmp_path: Path, replayed: Replayed
    ) -> None:
        """No load after it ends before the one ahead of it is judged and measured; the last is judged at the end."""
        seen: list[str] = []

        def after(backend: str) -> Callable[[Path], None]:
            def wait(root: Path) -> None:
                assert wait_for(lambda: judged_and_measured(root, backend)), f"{backend} is not judged meanwhile"
                seen.append(backend)

            return wait

        replayed.at = {"sim-exllama": after("hf-fp32"), "sim-gptq": after("sim-exllama")}
        run(wanted, tmp_path / "behind")
        assert seen == ["hf-fp32", "sim-exllama"]
        assert told(tmp_path / "behind") == told(tmp_path / "plain")

    def test_nothing_is_judged_twice(
        self, wanted: Asked, tmp_path: Path, replayed: Replayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every capture once, those of a load together; with the seconds that it took."""
        judged: list[list[str]] = []

        def noted(captures: dict[Key, Captured], *others: Any) -> dict[Key, list[Judgement]]:
            judged.append([backend for backend, _ in captures])
            return judge_captures(captures, *others)

        monkeypatch.setattr("gptq_diff.session.compare_run.judge_captures", noted)
        run(wanted, tmp_path / "behind")
        assert judged == [["hf-fp32"], ["sim-exllama"], ["sim-gptq", "hf-fp16"]]
        report = json.loads((tmp_path / "behind" / "report.json").read_text())
        assert all(list(r["seconds"])[:2] == ["between", "judge"] for r in report["results"])
        assert all(r["seconds"]["judge"] > 0 for r in report["results"])

    def test_without_room_all_are_judged_together_at_the_end(
        self, wanted: Asked, tmp_path: Path, replayed: Replayed, room: Room
    ) -> None:
        """As on a CPU."""
        room.there = False
        replayed.at = {"sim-gptq": lambda root: seen.append((root / "judged").exists())}
        seen: list[bool] = []
        run(wanted, tmp_path / "again")
        assert seen == [False]


class TestWhatGoesWrong:
    def test_an_error_behind_is_the_runs(
        self, wanted: Asked, tmp_path: Path, replayed: Replayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Raised once all is captured, as if it had been found then."""
        at_work: list[str] = []

        def fail(*_: object) -> None:
            raise CaptureError("a tensor is damaged", "run again")

        monkeypatch.setattr(stages, "measure_headroom", fail)
        replayed.at = {"sim-gptq": lambda root: at_work.append(root.name)}
        with pytest.raises(CaptureError, match="a tensor is damaged"):
            run(wanted, tmp_path / "behind")
        assert at_work == ["behind"]
        assert RunDir(tmp_path / "behind").run()["state"] == "captured"
        assert not [t for t in threading.enumerate() if t.name.startswith("behind")]

    def test_an_interrupt_ends_it_and_the_rest_can_be_compared(
        self, wanted: Asked, tmp_path: Path, replayed: Replayed, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the second load, in the midst of the headroom of the first; what is whole gives the same report."""
        measured, at_work = stages.measure_headroom, threading.Event()

        def endless(*given: Any) -> None:
            at_work.set()
            go_on = given[-1]
            while True:
                go_on()

        def interrupt(root: Path) -> None:
            assert not room.there or at_work.wait(SOON)
            raise KeyboardInterrupt

        replayed.at = {"sim-exllama": interrupt}
        for name, there in (("cut", True), ("cut-plain", False)):
            room.there = there
            monkeypatch.setattr(stages, "measure_headroom", endless if there else measured)
            with pytest.raises(KeyboardInterrupt):
                run(wanted, tmp_path / name)
            assert RunDir(tmp_path / name).run()["state"] == "interrupted"
            assert not [t for t in threading.enumerate() if t.name.startswith("behind")]
            compare_again(tmp_path / name, None, None, allow_skip=False, say=lambda _: None)
        assert told(tmp_path / "cut") == told(tmp_path / "cut-plain")
