"""All processes that a worker starts, found and ended, also those that leave its group or outlive it.

Engines start helpers in sessions of their own (`setsid`), and ranks that are not ended with their parent. Each of them
holds GPU memory. Linux only: elsewhere nothing is found, and ending the process group has to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
MARK = "GPTQ_DIFF_WORKER"
"""Variable that a worker hands down to all that it starts."""
ENDED = frozenset("ZX")
"""States of a process that has given back all it held: zombie, dead."""


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).

    started: ticks since the system's start; with the pid it names a process for good, while parent and session change.
    """

    pid: int
    started: int
    parent: int = field(compare=False)
    session: int = field(compare=False)


def running() -> dict[int, Process]:
    """Every process by its id; zombies are left out."""
    found = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # the name, in parentheses, may hold anything
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0].decode() not in ENDED:
                    pid = int(entry.name)
                    found[pid] = Process(pid, int(fields[19]), int(fields[1]), int(fields[3]))
    return found


def descendants(root: int, among: dict[int, Process]) -> set[Process]:
    """Children of that process, their children and so on; not itself."""
    children: dict[int, list[Process]] = {}
    for process in among.values():
        children.setdefault(process.parent, []).append(process)
    found: set[Process] = set()
    todo = [root]
    while todo:
        new = [child for child in children.get(todo.pop(), ()) if child not in found]
        found.update(new)
        todo += [child.pid for child in new]
    return found


def end_descendants(root: int) -> None:
    """SIGKILL to all that descends from that process, again until nothing new is found."""
    killed: set[Process] = set()
    while new := descendants(root, running()) - killed:
        for process in new:
            _kill(process.pid)
        killed |= new


def end_with_parent(parent: int) -> None:
    """Leave no orphan: a thread that ends this process, and what it has started, once its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end_descendants(os.getpid())
        if os.getpgrp() == os.getpid():  # as a launcher starts it: the group is this process' own
            os.killpg(0, signal.SIGKILL)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


class Family:
    """What descends from one worker, whatever has become of the worker.

    A process belongs to it that was seen below the worker, is in its session, has the worker's mark in its environment
    (which some programs overwrite to show a title), or descends from one that does.
    """

    def __init__(self, root: int, mark: str) -> None:
        self._root = root
        self._mark = f"{MARK}={mark}".encode()
        self._seen: set[Process] = set()

    def look(self) -> None:
        """Remember who is there while the worker lives: once it has died its children have another parent."""
        self._seen |= descendants(self._root, running())

    def members(self) -> set[Process]:
        """Those that still run, the worker included."""
        there = running()
        found = {p for p in there.values() if p in self._seen or p.session == self._root or self._is_marked(p.pid)}
        for process in list(found):
            found |= descendants(process.pid, there)
        return found

    def end(self, seconds: float) -> bool:
        """SIGKILL to all until none is left; False where some still run after that time."""
        until = time.monotonic() + seconds
        while left := self.members():
            for process in left:
                _kill(process.pid)
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # ended, or somebody else's
            return False


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
