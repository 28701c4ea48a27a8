"""`gptq-diff run` with a clock on its stages: python -m benchmarks.gpu.thirty_two.timed_run FILE.json run --model ...

Everything after FILE is the program's own command line. Written are the seconds of every stage of the main job in this
process, in the order in which they ended; what was waited for within another stage counts there too. "load ..." runs
from the start of a worker to its end; "judged while an engine waits" are captures that are judged, and experiments
planned, between the jobs of a load.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptq_diff.cli import app
from gptq_diff.session import capture_all, live_load, main_job

STAGES = {
    main_job: ["start_record", "capture_all", "judge_run", "judge_intervals", "diagnose_run", "measure_headroom",
               "try_fixed_checkpoint", "report_run", "keep_what_was_asked", "write"],
}  # fmt: skip


class Clock:
    """Seconds by stage, and the file that they are kept in after each."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._started = time.perf_counter()
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
        self.stages.append({"stage": stage, "seconds": round(seconds, 3), "ended_at": at})
        self._place.write_text(json.dumps(self.stages, indent=1) + "\n")


def install(clock: Clock) -> None:
    """Put the clock on the stages; this process runs one command and ends."""
    for module, names in STAGES.items():
        for name in names:
            setattr(module, name, clock.timed(lambda *_, name=name: name, getattr(module, name)))
    capture_all.run_load = clock.timed(lambda load, *_: f"load {load.spec.jobs[0].backend}", capture_all.run_load)
    live_load.OfLoad.__call__ = clock.timed(  # type: ignore[method-assign]
        lambda *_: "judged while an engine waits", live_load.OfLoad.__call__
    )


def main() -> None:
    place, arguments = Path(sys.argv[1]), sys.argv[2:]
    clock = Clock(place)
    install(clock)
    sys.argv = ["gptq-diff", *arguments]
    app.main()


if __name__ == "__main__":
    main()
