"""Finding and ending what a process has started, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff import processes
from gptq_diff.processes import MARK, Family, descendants, end_descendants, running
from tests.fake_worker import alive, ended

TREE = """
import os, subprocess, sys, time
pids = [os.getpid()]
pids.append(subprocess.Popen(["sleep", "600"]).pid)
code = "import os, subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
middle = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
pids += [middle.pid, int(middle.stdout.readline())]
print(*pids, flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process with a child, and a child in another session that has one of its own; ended afterwards."""
    root = subprocess.Popen(
        [sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, MARK: "abc"},
    )  # fmt: skip
    assert root.stdout is not None
    pids = [int(word) for word in root.stdout.readline().split()]
    yield root, pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, 9)
    root.wait()


def test_descendants_are_found_across_sessions(tree: tuple[subprocess.Popen[str], list[int]]) -> None:
    """Children and their children; this process's other children are not among them."""
    _, pids = tree
    bystander = subprocess.Popen(["sleep", "600"])
    there = running()
    assert {p.pid for p in descendants(pids[0], there)} == set(pids[1:])
    assert {*pids, bystander.pid} <= {p.pid for p in descendants(os.getpid(), there)}
    assert there[os.getpid()].parent == os.getppid()
    assert there[pids[2]].session == pids[2] != there[pids[1]].session == pids[0]
    bystander.kill()
    bystander.wait()


def test_a_family_ends_whole_and_alone(tree: tuple[subprocess.Popen[str], list[int]]) -> None:
    """After the root was killed: the child is known by its session, the others by the mark."""
    root, pids = tree
    bystander = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: "abcd"})
    root.kill()
    root.wait()
    family = Family(pids[0], "abc")
    assert {p.pid for p in family.members()} == set(pids[1:])
    assert family.end(10.0)
    assert ended(pids, 0.0)
    assert family.members() == set()
    assert alive(bystander.pid)
    bystander.kill()
    bystander.wait()


def test_who_was_seen_is_known_without_its_mark(tree: tuple[subprocess.Popen[str], list[int]]) -> None:
    """As long as it is the same process: an id that is used again is another."""
    root, pids = tree
    family = Family(pids[0], "another mark")
    family.look()
    root.kill()
    root.wait()
    assert {p.pid for p in family.members()} == set(pids[1:])
    family._seen = {replace(p, started=p.started + 1) for p in family._seen}
    assert {p.pid for p in family.members()} == {pids[1]}  # by its session alone
    assert family.end(10.0)


def test_all_descendants_can_be_ended(tree: tuple[subprocess.Popen[str], list[int]]) -> None:
    """Not the process itself: a worker that lost its parent ends itself last."""
    root, pids = tree
    end_descendants(pids[0])
    assert ended(pids[1:], 5.0)
    assert root.poll() is None


def test_one_that_cannot_be_ended_does_not_hold_up_the_run(
    tree: tuple[subprocess.Popen[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in the driver's hands may ignore SIGKILL for minutes."""
    monkeypatch.setattr(processes, "_kill", lambda pid: None)
    started = time.monotonic()
    assert not Family(tree[1][0], "abc").end(0.3)
    assert time.monotonic() - started < 3


def test_without_proc_nothing_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere than on Linux the process group has to do."""
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    assert running() == {}
    family = Family(os.getpid(), "x")
    family.look()
    assert family.end(0.0)


def test_zombies_have_ended(tree: tuple[subprocess.Popen[str], list[int]]) -> None:
    """They hold nothing, and only their parent can take them away."""
    root, _ = tree
    root.kill()
    while alive(root.pid):
        time.sleep(0.01)
    assert Path(f"/proc/{root.pid}").exists()
    assert root.pid not in running()
