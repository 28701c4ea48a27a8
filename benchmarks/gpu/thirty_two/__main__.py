"""Qwen2.5-32B's shape on a GPU: python -m benchmarks.gpu.thirty_two --out DIR [--part PART ...]

Parts, each in processes of its own, its results in DIR/PART.json as soon as there are any:

build     the checkpoint, 64 blocks, with a gain shift at one block drawn from --seed
ceilings  what the machine can do at most: copies, launches, float64 products
run-plain like for like with `bare`: no experiments and no workarounds, which bare engines do not make
run       the program itself, by its defaults: the reference, vllm-exllama, vllm-reconstruct, gptq-marlin; a clock on
          its stages; whether the planted linear is named
bare      the same engines without gptq-diff, one process each
judge     every backend's local errors once more, by themselves; the other stages
calls     what the tap adds to one kernel call, without a model
tap       what the tap adds to a prefill (Marlin)
tap-gptq  the same on gptq_gemm's reconstruct path
lengths   what the tap adds to prefills of 128, 512 and 2,048 tokens
sizes     build and tap once more with 8 blocks, into DIR/blocks-8: how the cost grows with the model
tests     the tests that run on a real GPU
ranks     what the tap adds to a prefill shared among --ranks GPUs
ranks-run the program on --ranks GPUs: the reference, vllm-exllama, gptq-marlin
ranks-bare  its vLLM engines without gptq-diff, on as many

What was built stays in --place between calls. `--trial` is a small model on the CPU (with --vllm-python for vLLM):
it proves the scripts, its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu.thirty_two.prompt import Found, token_ids, vocabulary_of
from gptq_diff.processes import MARK, Family

BLOCKS = 64
SHAPE = "synthetic-qwen2.5-32b"
NEEDED = 24 * 10**9
"""Bytes free where the checkpoint is built."""
SHIFT_GROUP, SHIFT_GAIN = 144, 4
"""The group of the massive channel (gptq_diff.models.massive), and what makes 12,000 of its 3,000."""
BACKENDS = "hf-fp32,vllm-exllama,vllm-reconstruct,gptq-marlin"


class Thirty:
    """What the parts share."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.out: Path = asked.out.absolute()
        self.place: Path = asked.place.absolute()
        self.trial: bool = asked.trial
        self.out.mkdir(parents=True, exist_ok=True)
        self.place.mkdir(parents=True, exist_ok=True)
        self.blocks = asked.blocks or (3 if self.trial else BLOCKS)
        self.planted = random.Random(asked.seed).randrange(1, self.blocks)
        self.vllm_python = asked.vllm_python or sys.executable
        self.device = "cpu" if self.trial else "cuda"

    @property
    def model(self) -> Path:
        """Where the checkpoint is, or is to be: in memory where that has room."""
        name = f"shape32b-{'trial-' if self.trial else ''}{self.blocks}-{self.planted}"
        memory = Path("/dev/shm")
        for home in (memory, self.place):
            if (home / name / "config.json").is_file():
                return home / name
        room = memory.is_dir() and not self.trial and shutil.disk_usage(memory).free > NEEDED
        return (memory if room else self.place) / name

    def start(self, part: str, module: str, *arguments: object, python: str = "", seconds: float = 580) -> int:
        """One script of this folder, its output shown; what it has written stays when its time is up."""
        command = [python or sys.executable, "-m", f"benchmarks.gpu.thirty_two.{module}", *map(str, arguments)]
        return watched(part, command, seconds)


def watched(part: str, command: list[str], seconds: float) -> int:
    """The command's exit code, 124 where its time was up; its output is passed on."""
    print(f"[{time.strftime('%H:%M:%S')}] {part}: {' '.join(command)[:400]}", flush=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }
    mark = secrets.token_hex(16)
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**environment, MARK: mark}, start_new_session=True)
    family = Family(process.pid, mark)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = 124
    finally:
        family.look()
        process.kill()
        process.wait()
        family.end(15)  # an engine's ranks outlive it, and hold their GPU
    print(f"[{time.strftime('%H:%M:%S')}] {part}: exit {code}, {time.perf_counter() - started:.1f} s", flush=True)
    return code


def build(t: Thirty) -> None:
    """The checkpoint."""
    found = Found(t.out / "build.json", what="model build synthetic-qwen2.5-32b", blocks=t.blocks, planted=t.planted)
    model, group = t.model, SHIFT_GROUP
    shape: list[str] = []
    if t.trial:
        shape = ["--hidden", "256", "--intermediate", "768", "--heads", "8", "--kv-heads", "4"]
        group = 512 // 128
    command = [
        sys.executable, "-m", "gptq_diff", "model", "build", "tiny-qwen2" if t.trial else SHAPE,
        "--blocks", str(t.blocks), *shape, *(["--group-size", "128"] if t.trial else []),
        "--gain-shift", f"{t.planted}:{group}:{8 if t.trial else SHIFT_GAIN}", "--out", str(model),
    ]  # fmt: skip
    started = time.perf_counter()
    code = watched("build", command, t.asked.seconds)
    size = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    found.add(exit=code, seconds=time.perf_counter() - started, bytes=size, in_memory=model.parts[1] == "dev",
              cores=len(os.sched_getaffinity(0)))  # fmt: skip


def ceilings(t: Thirty) -> None:
    """Of the machine."""
    file = next(iter(sorted(t.model.glob("*.safetensors"))), None)
    more = [] if file is None else ["--file", file]
    size = 64 if t.trial else 1024
    t.start("ceilings", "ceilings", "--out", t.out / "ceilings.json", "--device", t.device, "--megabytes", size, *more)


def run_arguments(t: Thirty, name: str, *more: str) -> list[str]:
    """`run` on that model, one prompt of 37 ids, prefill only, everything kept."""
    prompts = t.place / "prompts.json"
    ids = list(token_ids(t.asked.rows, vocabulary_of(t.model)))
    prompts.write_text(json.dumps([{"id": "p", "token_ids": ids}]))
    backends = f"hf-fp32,sim-exllama,vllm@{t.vllm_python}" if t.trial else BACKENDS
    return [
        "run", "--model", str(t.model), "--prompt-file", str(prompts), "--backends", t.asked.backends or backends,
        "--max-new-tokens", "1", "--capture", "full", "--device", t.device, "--overwrite",
        "--out", str(t.place / name), *more,
    ]  # fmt: skip


def run(t: Thirty, name: str = "run", *more: str) -> None:
    """The program with a clock on it, and what it says."""
    found = Found(
        t.out / f"{name}.json", what="gptq-diff run, one prompt", planted=t.planted, model="synthetic-qwen2.5-32b"
    )
    stages = t.out / f"{name}-stages.json"
    started = time.perf_counter()
    code = t.start(name, "timed_run", stages, *run_arguments(t, name, *more), seconds=t.asked.seconds)
    found.add(exit=code, wall_seconds=round(time.perf_counter() - started, 2))
    if stages.is_file():
        found.add(stages=json.loads(stages.read_text()))
        stages.unlink()
    report = t.place / name / "report.json"
    if report.is_file():
        raw = json.loads(report.read_text())
        (t.out / f"{name}-report.json").write_text(public(t, report.read_text()))
        found.add(**said(raw, t.planted))


def public(t: Thirty, text: str) -> str:
    """The text without the directories of the machine that it was made on."""
    for place, name in ((t.model, SHAPE), (t.place, "RUNS"), (Path(sys.prefix), "VENV"),
                        (Path.cwd(), "."), (Path.home(), "~")):  # fmt: skip
        text = text.replace(str(place), name)
    return text


def said(raw: dict[str, Any], planted: int) -> dict[str, Any]:
    """What the report says of each backend, and whether it named what was planted."""
    wanted = f"model.layers.{planted}.mlp.down_proj"
    rows = {}
    for result in raw["results"]:
        bad = result["first_bad"]
        rows[result["backend"]] = {
            "status": result["status"], "first_bad": None if bad is None else bad["layer"],
            "compared": result["layers"]["compared"], "seconds": result["seconds"],
            "causes": [finding["cause"] for finding in result["findings"]][:3],
            "workarounds": [(w["name"], w["works"]) for w in result["workarounds"]],
            "peak_private_bytes": result["peak_private_bytes"], "peak_gpu_bytes": result["peak_gpu_bytes"],
        }  # fmt: skip
    broken = {name: row["first_bad"] for name, row in rows.items() if row["status"] != "agree"}
    return {
        "verdict": raw["verdict"]["summary"], "backends": rows, "skipped": raw["skipped_backends"],
        "planted_linear_named": set(broken.values()) == {wanted}, "failing": sorted(broken),
    }  # fmt: skip


def bare(t: Thirty, ranks: int = 1) -> None:
    """Every engine of the run by itself; the sum is the run's floor."""
    name = "bare" if ranks == 1 else f"ranks{ranks}-bare"
    found = Found(t.out / f"{name}.json", what="engines without gptq-diff, one process each, seconds", ranks=ranks)
    engines = [("reference", "", sys.executable)]
    routes = ["auto"] if t.trial else ["gptq"] if ranks > 1 else ["gptq", "marlin"]
    engines += [("vllm", route, t.vllm_python) for route in routes]
    took: dict[str, Any] = {}
    for engine, route, python in engines:
        if ranks > 1 and engine == "reference":
            continue
        file = t.place / "one-bare.json"
        file.unlink(missing_ok=True)
        started = time.perf_counter()
        t.start(f"{name} {engine} {route}", "bare", "--engine", engine, *(["--route", route] if route else []),
                "--ranks", ranks, "--device", t.device, "--model", t.model, "--rows", t.asked.rows, "--out", file,
                python=python, seconds=200)  # fmt: skip
        one = json.loads(file.read_text()) if file.is_file() else {}
        took[f"{engine} {route}".strip()] = {**one, "wall_seconds": round(time.perf_counter() - started, 2)}
        found.add(engines=took)
    found.add(wall_sum=round(sum(one["wall_seconds"] for one in took.values()), 2),
              first_prefill_sum=sum(one.get("first_prefill_done_after", 0.0) for one in took.values()))  # fmt: skip


def sizes(t: Thirty) -> None:
    """A smaller model's tap, for the growth with the number of blocks."""
    for blocks in (2,) if t.trial else (8,):
        asked = argparse.Namespace(**{**vars(t.asked), "blocks": blocks, "out": t.out / f"blocks-{blocks}"})
        smaller = Thirty(asked)
        build(smaller)
        tap(smaller, name="tap", profile=False)


def judge(t: Thirty) -> None:
    """Of the part `run`."""
    t.start("judge", "judge_cost", "--run", t.place / "run", "--out", t.out / "judge.json",
            "--device", "cpu" if t.trial else "cuda", "--cpu-blocks", 0, t.planted)  # fmt: skip


def calls(t: Thirty) -> None:
    """Of one kernel call, without a model."""
    t.start("calls", "call_cost", "--out", t.out / "calls.json", *(["--rounds", 20] if t.trial else []),
            python=t.vllm_python, seconds=100)  # fmt: skip


def tap(t: Thirty, route: str = "marlin", name: str = "tap", *, profile: bool = True) -> None:
    """On one GPU."""
    more = ["--profile", t.out / f"{name}-profile.txt"] if profile and name == "tap" else []
    if t.trial:
        route, more = "auto", [*more, "--staged", "--rounds", 3, "--slow-rounds", 1, "--memory", t.place / "memory"]
    t.start(name, "tap_cost", "--model", t.model, "--out", t.out / f"{name}.json", "--route", route,
            "--disk", t.place / "tap-disk", "--rows", t.asked.rows, *more, python=t.vllm_python)  # fmt: skip


def lengths(t: Thirty) -> None:
    """The tap again, a few rounds, with longer prompts beside the usual one."""
    more = ["--staged", "--lengths", 45, 60, "--rounds", 1, "--memory", t.place / "memory"] if t.trial else [
        "--lengths", 128, 512, 2048, "--rounds", 2]  # fmt: skip
    t.start("lengths", "tap_cost", "--model", t.model, "--out", t.out / "lengths.json",
            "--route", "auto" if t.trial else "marlin", "--slow-rounds", 5, "--rows", t.asked.rows, *more,
            python=t.vllm_python)  # fmt: skip


def tests(t: Thirty) -> None:
    """Those that are skipped without a GPU."""
    os.environ["GPTQ_DIFF_TEST_CUDA"] = "1"
    places = ["tests/compare/test_judge_on_gpu.py", "tests/diagnose/headroom/test_measure.py",
              "tests/capture/test_lanes.py"]  # fmt: skip
    code = watched("tests", [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places], 200)
    Found(t.out / "tests.json").add(exit=code, places=places)


def ranks(t: Thirty) -> None:
    """On several GPUs."""
    n = t.asked.ranks
    trial = ["--rounds", 2, "--place", t.place / "ranks"] if t.trial else []
    t.start("ranks tap", "ranks_cost", "--model", t.model, "--ranks", n, "--out", t.out / f"ranks{n}-tap.json",
            "--route", "auto" if t.trial else "marlin", "--rows", t.asked.rows, "--rounds", 6, *trial,
            python=t.vllm_python, seconds=250)  # fmt: skip


def ranks_run(t: Thirty) -> None:
    """The program on several GPUs."""
    t.asked.backends = t.asked.backends or ("" if t.trial else "hf-fp32,vllm-exllama")
    run(t, f"ranks{t.asked.ranks}-run", "--tensor-parallel-size", str(t.asked.ranks))


PARTS: dict[str, Callable[[Thirty], None]] = {
    "build": build, "ceilings": ceilings, "run": run, "bare": bare, "sizes": sizes,
    "run-plain": lambda t: run(t, "run-plain", "--experiments", "off", "--workarounds", "off"),
    "judge": judge, "tap": tap, "calls": calls, "lengths": lengths,
    "tap-gptq": lambda t: tap(t, "gptq", "tap-gptq"), "tests": tests, "ranks": ranks, "ranks-run": ranks_run,
    "ranks-bare": lambda t: bare(t, t.asked.ranks),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results: small JSON files")
    parser.add_argument("--place", type=Path, default=Path("/tmp/gptq-diff-32b"))
    parser.add_argument("--part", nargs="*", default=["build", "ceilings", "tap", "run", "bare", "judge"],
                        choices=sorted(PARTS))  # fmt: skip
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--rows", type=int, default=37)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backends", default="", help="instead of those of the part")
    parser.add_argument("--vllm-python", default="", help="an interpreter with vLLM, where this one has none")
    parser.add_argument("--seconds", type=float, default=580, help="that the parts build and run may take, each")
    parser.add_argument("--trial", action="store_true")
    asked = parser.parse_args()
    t = Thirty(asked)
    overall = Found(t.out / "parts.json", date=datetime.now(timezone.utc).date().isoformat(), asked=asked.part,
                    blocks=t.blocks, rows=asked.rows, trial=t.trial)  # fmt: skip
    for part in asked.part:
        started = time.perf_counter()
        PARTS[part](t)
        overall.add(**{part: round(time.perf_counter() - started, 1)})


if __name__ == "__main__":
    main()
