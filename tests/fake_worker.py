"""A stand-in for an interpreter: speaks a worker's protocol without loading anything, and misbehaves on request."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from gptq_diff.jobs import Job, WorkerSpec
from gptq_diff.launch import Load

SCRIPT = """#!{python} -IS
import json, os, signal, subprocess, sys, time

assert sys.argv[1:3] == ["-m", "gptq_diff.worker"]
if sys.argv[4:]:  # it was started early
    with open(os.path.join({notes!r}, "early"), "a") as file:
        file.write(str(os.getpid()) + chr(10))
{early}
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
with open(sys.argv[3]) as file:
    spec = json.load(file)
notes = {notes!r}
events = open(spec["events"], "a", buffering=1)


def say(event, **values):
    events.write(json.dumps({{"event": event, "time": time.time(), **values}}) + chr(10))


def note(name, value):
    with open(os.path.join(notes, name), "a") as file:
        file.write(str(value) + chr(10))


def grandchild(**how):
    child = subprocess.Popen(["sleep", "600"], **how)
    note("pids", child.pid)


def daemon():  # in another session, its parent gone
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    note("pids", int(done.stdout))


def at_start():
{start}


def at_job(backend, prompt):
{job}


def at_further(backend, name):
{further}


def at_end():
{end}


note("pids", os.getpid())
at_start()
say("loaded", seconds=0.5, versions={{"fake": "1.0"}})
for index, job in enumerate(spec["jobs"]):
    if "layer" in job:
        note("further", job["backend"] + "/" + job["layer"])
        say("linear-done", job=index, refused=at_further(job["backend"], job["layer"]))
        continue
    say("job", job=index, layers=2)
    at_job(job["backend"], job["prompt"])
    say("done", job=index)
    note("done", job["backend"] + "/" + job["prompt"])
number, index = 0, len(spec["jobs"])
while spec["follow_up"]:
    number += 1
    say("waiting", round=number)
    at_further(None, number)
    file = os.path.join(spec["follow_up"], "round-%d.json" % number)
    while not os.path.exists(file):
        time.sleep(0.01)
    with open(file) as handed:
        jobs = json.load(handed)
    if not jobs:
        break
    for job in jobs:
        note("further", job["backend"] + "/" + job["layer"])
        refused = at_further(job["backend"], job["layer"])
        say("linear-done", job=index, refused=refused)
        index += 1
say("end")
at_end()
"""


class FakeWorker:
    """An executable in `folder` that acts as the interpreter of a Load; start, job, further, end: Python code to run.
    early: the same, where it was started before its load; indented.

    In `job`, `backend` and `prompt` say which one it is. In `further`, `backend` and `name` (the layer) do, and what it
    returns is why the job is refused; it also runs when the worker has said that it waits: backend is None then.
    """

    def __init__(
        self, folder: Path, *, start: str = "pass", job: str = "pass", further: str = "pass", end: str = "pass",
        early: str = "pass",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.notes = folder / "notes"
        self.notes.mkdir(parents=True)
        self.python = folder / "fake-python"
        self.log = folder / "logs" / "fake.log"
        code = {"start": start, "job": job, "further": further, "end": end, "early": early}
        bodies = {name: _body(body) for name, body in code.items()}
        self.python.write_text(SCRIPT.format(python=sys.executable, notes=str(self.notes), **bodies))
        self.python.chmod(0o755)

    def load(self, *backends: str, prompts: tuple[str, ...] = ("short",), timeout: float | None = 30.0) -> Load:
        """A load of these backends, each with every prompt."""
        jobs = tuple(Job(b, "fake", p, (1, 2), 1, None, str(self.folder / b / p)) for b in backends for p in prompts)
        spec = WorkerSpec("fake", str(self.folder), "float16", "cpu", False, 0, 0, "", os.getpid(), jobs)
        return Load(self.python, self.folder / "staged", self.log, timeout, {}, spec)

    def pids(self) -> list[int]:
        """Every process that was started: the workers, and their children."""
        return [int(line) for line in self.noted("pids")]

    def noted(self, name: str) -> list[str]:
        """What the workers wrote down under that name."""
        place = self.notes / name
        return place.read_text().split() if place.exists() else []

    def wait_for_pids(self, count: int, seconds: float = 20.0) -> None:
        """Until that many processes have been started."""
        until = time.monotonic() + seconds
        while len(self.pids()) < count:
            assert time.monotonic() < until, "the fake worker did not start"
            time.sleep(0.02)


def _body(code: str) -> str:
    return "\n".join("    " + line for line in code.strip().splitlines())


def alive(pid: int) -> bool:
    """Whether that process still runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def ended(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether all those processes end within that time."""
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
