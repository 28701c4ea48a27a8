"""Workers that fail on a GPU: python -m benchmarks.gpu.faults --out FILE.json [--backend vllm-gptq@PYTHON]

Three runs of the program on a small random model, each with hf-fp32 and one backend that comes to grief. `oom`: another
process holds most of the GPU's memory. `kill`: its worker is killed (SIGKILL) in mid-capture. `hang`: its worker is
stopped (SIGSTOP) once it holds GPU memory, and --timeout passes. After each: the backend is skipped with a reason,
hf-fp32 has its verdict, no process is left, and the GPU's used memory is what it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.planted import build
from gptq_diff.processes import MARK, descendants, running

PROMPT = [{"id": "p", "token_ids": [(7 * i + 3) % 250 for i in range(80)]}]
LEFT_FREE = 2 * 2**30
"""Bytes that the hog leaves."""
NOTICED = 300 * 2**20
"""Bytes more than before by which a worker on the GPU is noticed."""
HOG = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("ready", flush=True)
time.sleep(600)
"""
OURS = "GPTQ_DIFF_FAULTS"
USED = "import torch; free, total = torch.cuda.mem_get_info(); print((total - free) // 2**20)"


def used_bytes() -> int:
    """Memory in use on all GPUs, as the driver tells it; without nvidia-smi on the first, a CUDA context included."""
    if shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    else:
        command = [sys.executable, "-c", USED]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return sum(int(line) for line in said.split()) * 2**20


def command_line(pid: int) -> str:
    """What a process was started as; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def left_over() -> list[str]:
    """Processes that a run of this script has left: workers, what carries their mark, vLLM's own under their titles."""
    found = []
    for pid in running():
        line = command_line(pid)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            environment = b""
        marked = MARK.encode() in environment
        if OURS.encode() not in environment:
            continue  # another program's, run beside this one
        if pid != os.getpid() and (marked or "gptq_diff.worker" in line or line.lower().startswith("vllm")):
            found.append(line[:200])
    return found


class Program:
    """One `gptq-diff run` in a process of its own."""

    def __init__(self, model: Path, backend: str, out: Path, *more: str) -> None:
        prompts = out.with_name(out.name + ".prompts.json")
        prompts.write_text(json.dumps(PROMPT))
        self.out = out
        self.backend = backend.partition("@")[0]
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gptq_diff", "run", "--model", str(model), "--prompt-file", str(prompts)),
                *("--backends", f"hf-fp32,{backend}", "--out", str(out), "--overwrite", "--json", *more),
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def worker(self) -> int | None:
        """The failing backend's worker, once hf-fp32's is done: it alone loads the engine."""
        if not (self.out / "captures" / "hf-fp32" / "p" / "manifest.json").is_file():
            return None
        workers = [
            p.pid for p in descendants(self._process.pid, running()) if "gptq_diff.worker" in command_line(p.pid)
        ]
        return max(workers, default=None)

    def capturing(self) -> bool:
        """Whether its first capture has begun."""
        return (self.out / "captures" / self.backend / "p" / "stats.jsonl").is_file()

    def ended(self) -> bool:
        """Whether the run is over."""
        return self._process.poll() is not None

    def report(self) -> dict[str, Any]:
        """Wait for the end; what became of both backends."""
        out, _ = self._process.communicate()
        if not out:
            raise SystemExit(f"gptq-diff run ended with {self._process.returncode} and without a report")
        report = json.loads(out)
        return {
            "exit": self._process.returncode, "seconds": round(time.perf_counter() - self._started, 1),
            "agreed": [r["backend"] for r in report["results"] if r["status"] == "agree"],
            "skipped": [
                {"backend": s["backend"], "reason": s["reason"], "log_end": s["log_end"][-3:]}
                for s in report["skipped_backends"]
            ],
        }  # fmt: skip


@contextlib.contextmanager
def hog() -> Iterator[None]:
    """A process that holds all but LEFT_FREE of the GPU."""
    process = subprocess.Popen([sys.executable, "-c", HOG, str(LEFT_FREE)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("the GPU's memory could not be taken")
        yield
    finally:
        process.kill()
        process.wait()


def signalled(program: Program, number: signal.Signals, before: int) -> float | None:
    """Send the signal at the right moment; seconds after the start, None where the run ended before it came.

    SIGKILL: as soon as the capture has begun. SIGSTOP: as soon as the worker holds GPU memory.
    """
    started = time.perf_counter()
    while not program.ended():
        worker = program.worker()
        if worker is not None and (
            program.capturing() if number == signal.SIGKILL else used_bytes() > before + NOTICED
        ):
            os.kill(worker, number)
            return round(time.perf_counter() - started, 1)
        time.sleep(0.02)
    return None


def oom(model: Path, backend: str, place: Path, more: list[str]) -> dict[str, Any]:
    """Too little memory is left."""
    with hog():
        before = used_bytes()
        found = Program(model, backend, place / "oom", *more).report()
        return {**found, "used_before": before, "used_after": used_bytes(), "left": left_over()}


def struck(number: signal.Signals, more: list[str], model: Path, backend: str, place: Path) -> dict[str, Any]:
    """A worker that gets that signal."""
    before = used_bytes()
    program = Program(model, backend, place / number.name.lower(), *more)
    after = signalled(program, number, before)
    return {
        **program.report(), "signal": number.name, "signal_after_seconds": after, "used_before": before,
        "used_after": used_bytes(), "left": left_over(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for the model and tensors")
    parser.add_argument("--backend", default="vllm-gptq", help="default: %(default)s; with @PYTHON under that")
    parser.add_argument("--timeout", default="35", help="seconds, of the worker that hangs; default: %(default)s")
    parser.add_argument("--part", nargs="*", default=["oom", "kill", "hang"])
    parser.add_argument("more", nargs="*", help="further options of `gptq-diff run`, after --")
    asked = parser.parse_args()
    os.environ[OURS] = "1"  # all that is started from here on inherits it
    asked.place.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model = build(asked.place / "qwen2-faults", "--group-size", "128")
    found: dict[str, Any] = {"backend": asked.backend.partition("@")[0], "used_at_start": used_bytes()}
    for part in asked.part:
        if part == "oom":
            found[part] = oom(model, asked.backend, asked.place, asked.more)
        elif part == "kill":
            long = [*asked.more, "--max-new-tokens", "100"]
            found[part] = struck(signal.SIGKILL, long, model, asked.backend, asked.place)
        else:
            short = [*asked.more, "--timeout", asked.timeout]
            found[part] = struck(signal.SIGSTOP, short, model, asked.backend, asked.place)
        found[part]["used_since_start"] = used_bytes() - found["used_at_start"]
        print(json.dumps({part: found[part]}), flush=True)
    found["seconds"] = round(time.perf_counter() - started, 1)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
