"""`gptq-diff run` with a clock on its stages: python -m benchmarks.gpu.thirty_two.timed_run FILE.json run --model ...

Everything after FILE is the program's own command line. Written are the seconds of every stage of the main job in this
process, in the order in which they ended, counted from its start; what was waited for within another stage counts there
too. "load ..." runs from the start of a worker to its end; "judged while an engine waits" are captures that are judged,
and experiments planned, between the jobs of a load. What the thread behind the run did is marked `behind`: it ran
beside the loads, rests included; "waited for what is behind" is what was left of it after them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptq_diff.cli import app
from gptq_diff.cli import main_job as shown

STAGES = {
    "session.main_job": [
        "start_record", "capture_all", "try_fixed_checkpoint", "report_run", "keep_what_was_asked", "write",
    ],
    "session.stages": ["judge_run", "diagnose_run", "measure_headroom"],
}  # fmt: skip
METHODS = [
    ("session.between_run", "IntervalStage", "follow", "judge_intervals"),
    ("session.between_run", "IntervalStage", "store", "output heads"),
    ("session.workarounds", "Padding", "_settle", "padded prompt judged"),
    ("session.live_load", "OfLoad", "__call__", "judged while an engine waits"),
    ("session.behind", "Behind", "__exit__", "waited for what is behind"),
]
LONGEST_START = 120.0
"""Seconds that imports may take before what /proc says is not believed."""


class Clock:
    """Seconds by stage, and the file that they are kept in after each."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._started = time.perf_counter() - age()
        self._lock = threading.Lock()
        self.stages: list[dict[str, Any]] = []

    def timed(self, name: Callable[..., str], work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its seconds noted under the name that `name` makes of its arguments."""

        @functools.wraps(work)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.note(name(*args), time.perf_counter() - started)

        return clocked

    def note(self, stage: str, seconds: float) -> None:
        """Keep it, on disk too: a run that is cut off has told how far it came."""
        at = round(time.perf_counter() - self._started, 3)
        where = {} if threading.current_thread() is threading.main_thread() else {"behind": True}
        with self._lock:
            self.stages.append({"stage": stage, "seconds": round(seconds, 3), "ended_at": at, **where})
            self._place.write_text(json.dumps(self.stages, indent=1) + "\n")


def age() -> float:
    """Seconds since this process started (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).

    0 where a sandbox does not say when that was.
    """
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    found = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return found if 0 <= found < LONGEST_START else 0.0


def install(clock: Clock) -> None:
    """Put the clock on the stages; this process runs one command and ends."""
    for where, names in STAGES.items():
        module = importlib.import_module(f"gptq_diff.{where}")
        for name in names:
            setattr(module, name, clock.timed(lambda *_, name=name: name, getattr(module, name)))
    capture_all: Any = importlib.import_module("gptq_diff.session.capture_all")
    capture_all.run_load = clock.timed(lambda load, *_: f"load {load.spec.jobs[0].backend}", capture_all.run_load)
    for where, kind, method, stage in METHODS:
        owner = getattr(importlib.import_module(f"gptq_diff.{where}"), kind)
        setattr(owner, method, clock.timed(lambda *_, stage=stage: stage, getattr(owner, method)))


@contextlib.contextmanager
def started_and_clocked(clock: Clock, start: Callable[..., Any], *given: Any) -> Iterator[Any]:
    """The first worker, and then the clock: what it is put on brings torch along, as the program itself does then."""
    with start(*given) as first:
        clock.note("the first worker has started", 0.0)
        started = time.perf_counter()
        install(clock)
        clock.note("imports", time.perf_counter() - started)
        yield first


def main() -> None:
    place, arguments = Path(sys.argv[1]), sys.argv[2:]
    clock = Clock(place)
    shown.first_started = functools.partial(started_and_clocked, clock, shown.first_started)  # type: ignore[assignment]
    sys.argv = ["gptq-diff", *arguments]
    started = time.perf_counter()
    try:
        app.main()
    finally:
        clock.note("the command", time.perf_counter() - started)


if __name__ == "__main__":
    main()
