"""How long the commands that need no torch take to start."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.figure import Figure, median, side_by_side


def figures() -> list[Figure]:
    """`gptq-diff --help` and `gptq-diff backends`, beside an interpreter that does nothing."""
    program = str(Path(sys.executable).with_name("gptq-diff"))
    commands = {"--help": [program, "--help"], "backends": [program, "backends"], "bare": [sys.executable, "-c", ""]}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    times = side_by_side({name: _start(command, cpu[name]) for name, command in commands.items()})
    bare = f"an empty interpreter {median(times['bare']):.2f} s"
    return [
        Figure(f"gptq-diff {name}", median(times[name]), "s", most=0.4,
               note=f"{median(cpu[name]):.2f} s of CPU time; {bare}")
        for name in ("--help", "backends")
    ]  # fmt: skip


def _start(command: list[str], cpu: list[float]):
    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return work
