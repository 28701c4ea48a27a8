"""What becomes of a worker when its parent ends, and what it can import: the parent is a process of its own here."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.launch import run_load
from gptq_diff.stage import stage_package
from tests.fake_worker import FakeWorker, alive, ended

REPOSITORY = Path(__file__).parents[1]

RUN_LOAD = """
import os, pickle, sys
from dataclasses import replace
from gptq_diff.launch import run_load

with open(sys.argv[1], "rb") as file:
    load = pickle.load(file)
try:
    run_load(replace(load, spec=replace(load.spec, parent=os.getpid())), lambda backend, event: None)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_parent(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python process that runs the script, in a session of its own so that signals reach nobody else."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def run_load_elsewhere(fake: FakeWorker) -> subprocess.Popen[bytes]:
    place = fake.folder / "load.pickle"
    place.write_bytes(pickle.dumps(fake.load("a", "b")))
    return start_parent(RUN_LOAD, str(place))


def test_ctrl_c_ends_the_worker_and_its_children(tmp_path: Path) -> None:
    """SIGINT reaches the parent alone, which ends the worker's whole group before it ends itself."""
    fake = FakeWorker(tmp_path, job="grandchild(); time.sleep(600)")
    parent = run_load_elsewhere(fake)
    fake.wait_for_pids(2)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=20) == 130
    assert ended(fake.pids())


def test_a_second_ctrl_c_leaves_nothing_either(tmp_path: Path) -> None:
    """Whoever is impatient skips the time of grace; the worker, which ignores SIGTERM, is killed all the same."""
    fake = FakeWorker(
        tmp_path, job="signal.signal(signal.SIGTERM, lambda *_: note('asked', 1)); grandchild(); time.sleep(600)"
    )
    parent = run_load_elsewhere(fake)
    fake.wait_for_pids(2)
    parent.send_signal(signal.SIGINT)
    while not fake.noted("asked"):
        assert parent.poll() is None
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=4) == 130  # less than GRACE_SECONDS
    assert ended(fake.pids())


REAL_WAIT = """
import sys, threading
from gptq_diff import worker

def stay(spec, events):
    import os, subprocess, time
    children = [subprocess.Popen(["sleep", "600"], start_new_session=own) for own in (False, True)]
    with open(spec.model, "w") as file:
        file.write(f"{os.getpid()} {children[0].pid} {children[1].pid} ")
    time.sleep(600)

worker.work = stay
sys.exit(worker.main(sys.argv[3:]))
"""


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    """After kill -9 of the parent nobody is there to clean up: the real worker ends itself and what it started."""
    fake = FakeWorker(tmp_path)
    pids = tmp_path / "pids"
    fake.python.write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{REAL_WAIT}")
    fake.folder = pids  # what the spec calls the model: where the worker writes its process ids
    place = tmp_path / "load.pickle"
    place.write_bytes(pickle.dumps(fake.load("a")))
    parent = start_parent(RUN_LOAD, str(place))
    while not pids.exists() or len(pids.read_text().split()) < 3:
        assert parent.poll() is None
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(alive(pid) for pid in found)
    parent.kill()
    parent.wait()
    assert ended(found, seconds=10)


CAPTURE_ALL = """
import sys
from pathlib import Path
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.records import ModelInfo, Prompt
from gptq_diff.session import capture_all as session
from gptq_diff.session.asked import Asked, Backend, BackendRecord, RunRecord

out, python = Path(sys.argv[1]), sys.argv[2]
session.cache_dir = lambda: out.parent / "cache"
info = ModelInfo("m", "a", 4, 64, True, False, "gptq", 0, "0")
asked = Asked(
    model=Path("/nowhere"), reference_model=Path("/nowhere"), prompts=(Prompt("p1", (1,), None, "0"),),
    backends=tuple(Backend(n, "fake", "fake", n, python) for n in ("hf-fp32", "a")), reference="hf-fp32",
)
record = RunRecord(
    schema_version=1, gptq_diff="0", created="now", state="running", model=info, reference_model=None, environment={},
    reference="hf-fp32",
    backends=tuple(BackendRecord(b.name, b.engine, b.kernel, b.dtype, b.python) for b in asked.backends),
    quantized=(), not_read={}, capture="full", capture_budget=0, repeats=1, teacher_force=False, allow_skip=False,
)
try:
    session.capture_all(asked, RunDir.create(out, overwrite=False), record, lambda backend, event: None)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_run_json_says_interrupted_after_ctrl_c(tmp_path: Path) -> None:
    """What was finished before is kept in run.json, and its state is not taken for a finished run's."""
    fake = FakeWorker(tmp_path, job="if backend == 'a': grandchild(); time.sleep(600)")
    parent = start_parent(CAPTURE_ALL, str(tmp_path / "run"), str(fake.python))
    fake.wait_for_pids(3, seconds=60)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=20) == 130
    assert ended(fake.pids())
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said["state"] == "interrupted"
    assert [b["finished"] for b in said["backends"]] == [["p1"], []]


PROBE = """
import json, os, sys
import gptq_diff, torch
with open({found!r}, "w") as file:
    json.dump({{"path": sys.path, "cwd": os.getcwd(), "package": gptq_diff.__file__, "torch": torch.__file__,
               "PYTHONPATH": os.environ["PYTHONPATH"], "files": os.listdir(".")}}, file)
"""


def test_a_worker_imports_nothing_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder torch/ in the working directory stays there; the staged package comes before the user's PYTHONPATH."""
    here = tmp_path / "here"
    for name in ("torch", "gptq_diff", "numpy"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text(f"raise SystemExit('imported {name} from the working directory')")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "torch.py").write_text("the_users_own = True")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    found = tmp_path / "found.json"
    fake = FakeWorker(tmp_path / "fake")
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE.format(found=str(found)))
    # like `python -m`, `python -c` puts the working directory first; a script would have its own folder there
    fake.python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(cat {probe})"\n')
    staged = stage_package(tmp_path / "cache")
    run_load(replace(fake.load("a"), staged=staged), lambda backend, event: None)
    said = json.loads(found.read_text())
    assert said["package"] == str(staged / "gptq_diff" / "__init__.py")
    assert said["torch"] == str(theirs / "torch.py")
    assert said["PYTHONPATH"] == os.pathsep.join([str(staged), str(theirs)])
    assert said["files"] == []
    assert not Path(said["cwd"]).exists()  # a private directory that is gone with its worker
    assert str(here) not in said["path"]
