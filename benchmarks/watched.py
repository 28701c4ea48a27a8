"""A command of gptq-diff run to its end, with its processes' memory and its phases seen from outside."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.memory import memory_of

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Watched:
    """What one run took.

    wall: seconds. cpu: seconds of all its processes together, user and system: what a busy machine leaves as it is.
    captured: seconds until every worker had ended, judged: from then until run.json said so.
    worker, parent, together: peaks of anonymous and shared memory in bytes; together is the sum at one moment.
    report: report.json.
    """

    wall: float
    cpu: float
    captured: float
    judged: float
    worker: int
    parent: int
    together: int
    report: dict


def run_watched(arguments: list[str], out: Path) -> Watched:
    """Run `gptq-diff ARGUMENTS --out OUT`; any exit code but a numeric failure's or 0 is an error."""
    started, cpu = time.perf_counter(), _cpu_of_children()
    since: dict[str, float] = {}
    worker = parent = together = 0
    command = [sys.executable, "-m", "gptq_diff", *arguments, "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        own = memory_of(process.pid).private or 0
        theirs = sum(memory_of(child).private or 0 for child in _children(process.pid))
        worker, parent, together = max(worker, theirs), max(parent, own), max(together, own + theirs)
        since.setdefault(_state(out), time.perf_counter() - started)
        time.sleep(SAMPLE_SECONDS)
    wall = time.perf_counter() - started
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    captured = since["captured"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return Watched(
        wall,
        _cpu_of_children() - cpu,
        captured,
        since.get("finished", wall) - captured,
        worker,
        parent,
        together,
        report,
    )


def _cpu_of_children() -> float:
    """Seconds of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _state(out: Path) -> str:
    try:
        return json.loads((out / "run.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError):
        return "starting"
