"""Workers that are started before their load: taken over, ended when nobody takes them, failing like any other."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptq_diff.launch import Outcome, run_load
from gptq_diff.worker_process import Early
from tests.fake_worker import FakeWorker, ended


def run_early(fake: FakeWorker, *backends: str, timeout: float | None = 30.0) -> dict[str, Outcome]:
    """That load in a worker that was started before, from a draft without jobs, and has begun to wait."""
    load = fake.load(*backends, timeout=timeout)
    early = Early(dataclasses.replace(load, spec=dataclasses.replace(load.spec, jobs=())))
    until = time.monotonic() + 20
    while not fake.noted("early"):
        assert time.monotonic() < until
        time.sleep(0.02)
    try:
        return {o.backend: o for o in run_load(load, lambda backend, event: None, early=early)}
    finally:
        early.end()


def test_its_load_takes_it_over(tmp_path: Path) -> None:
    """One process in all; it does what the load's spec says, not what the draft said."""
    fake = FakeWorker(tmp_path)
    found = run_early(fake, "a", "b")
    assert [(o.backend, o.failure, o.finished) for o in found.values()] == [
        ("a", None, ["short"]), ("b", None, ["short"]),
    ]  # fmt: skip
    assert fake.pids() == [int(pid) for pid in fake.noted("early")]
    assert ended(fake.pids())


def test_further_jobs_are_asked_for_as_the_load_wants(tmp_path: Path) -> None:
    fake = FakeWorker(tmp_path)
    load = fake.load("a")
    early = Early(load)
    rounds: list[int] = []
    run_load(load, lambda backend, event: None, lambda outcomes: rounds.append(len(outcomes)) or [], early)
    assert rounds == [1]
    assert len(fake.noted("early")) == 1


def test_one_that_dies_while_it_waits_is_a_load_that_failed(tmp_path: Path) -> None:
    """With what its log says last, which it may have said before the load began."""
    fake = FakeWorker(tmp_path, early='    print("no such library", flush=True); sys.exit(7)')
    load = fake.load("a")
    early = Early(load)
    assert ended([int(pid) for pid in _noted(fake)])
    (found,) = run_load(load, lambda backend, event: None, early=early)
    assert found.failure == "its worker ended with status 7: no such library"
    assert found.log_end == ("no such library",)


def test_a_backend_that_kills_it_costs_the_others_nothing(tmp_path: Path) -> None:
    """The next worker is an ordinary one."""
    fake = FakeWorker(tmp_path, job="if backend == 'a': os.kill(os.getpid(), signal.SIGKILL)")
    found = run_early(fake, "a", "b")
    assert found["a"].failure == "its worker was killed by SIGKILL (out of memory?)"
    assert found["b"].failure is None
    assert (len(fake.pids()), len(fake.noted("early"))) == (2, 1)


def test_the_time_that_it_waited_is_not_its_loads(tmp_path: Path) -> None:
    """The clock starts with the load."""
    fake = FakeWorker(tmp_path)
    load = fake.load("a", timeout=3.0)
    early = Early(load)
    _noted(fake)
    time.sleep(3.1)
    (found,) = run_load(load, lambda backend, event: None, early=early)
    assert found.failure is None


def test_one_that_nobody_takes_is_ended_with_its_children(tmp_path: Path) -> None:
    fake = FakeWorker(tmp_path, early='    subprocess.Popen(["sleep", "600"])')
    early = Early(fake.load("a"))
    pids = [int(pid) for pid in _noted(fake)]
    early.end()
    assert ended(pids)
    early.end()


def test_one_that_cannot_be_started_is_told_by_its_load(tmp_path: Path) -> None:
    fake = FakeWorker(tmp_path)
    fake.python.chmod(0o644)
    load = fake.load("a")
    early = Early(load)
    (found,) = run_load(load, lambda backend, event: None, early=early)
    assert found.failure is not None
    assert "cannot be started: Permission denied" in found.failure


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_one_that_waits_ends_with_its_parent(tmp_path: Path) -> None:
    """The worker itself: its parent is gone before there is a spec."""
    fake = FakeWorker(tmp_path)
    draft = tmp_path / "draft.json"
    code = (
        "import os, subprocess, sys, dataclasses; from pathlib import Path; from gptq_diff.jobs import WorkerSpec\n"
        f"spec = WorkerSpec.read(Path({str(draft)!r}))\n"
        f"dataclasses.replace(spec, parent=os.getpid()).write(Path({str(draft)!r}))\n"
        "child = subprocess.Popen([sys.executable, '-m', 'gptq_diff.worker', sys.argv[1], sys.argv[2]], "
        "start_new_session=True)\n"
        "print(child.pid, flush=True); import time; time.sleep(1)"
    )
    spec = dataclasses.replace(fake.load("a").spec, engine="transformers", parent=os.getpid())
    spec.write(draft)
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json"), str(draft)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended([int(done.stdout)], seconds=30)


def _noted(fake: FakeWorker) -> list[str]:
    until = time.monotonic() + 20
    while not fake.noted("early"):
        assert time.monotonic() < until, "the fake worker did not start"
        time.sleep(0.02)
    return fake.noted("early")
