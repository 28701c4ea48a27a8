"""The exact reference on a GPU: python -m benchmarks.gpu.reference --out FILE.json --smollm2 MODEL [--place DIR]

Three parts, all with `hf-fp32`. `smollm2`: one run with --device cuda and one with --device cpu, each judged by itself,
and how far their captures are apart. `synthetic`: a slice of synthetic-qwen2.5-32b, built meanwhile, through the
program. `streamed`: the same slice in this process, packed weights kept on the GPU or brought there for every use: what
a model too large for the GPU costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.device import gpu_peak, spare_bytes
from gptq_diff.engines.hf import HfEngine

SYNTHETIC = "synthetic-qwen2.5-32b"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
IDS = [151644, *(7919 * i % 151000 for i in range(1, 37))]
"""37 ids over the whole vocabulary, the first as real prompts have it."""


def start_build(blocks: int, place: Path) -> subprocess.Popen[bytes] | None:
    """The slice, built beside what runs first; None where it is there already."""
    if (place / "config.json").is_file():
        return None
    command = ["model", "build", SYNTHETIC, "--blocks", str(blocks), "--out", str(place)]
    return subprocess.Popen([sys.executable, "-m", "gptq_diff", *command], stdout=subprocess.DEVNULL)


def run(model: Path, prompt: dict[str, object], device: str, tokens: int, out: Path) -> dict[str, Any]:
    """`gptq-diff run` on hf-fp32; its report with the wall time."""
    prompts = out.with_name(out.name + ".prompts.json")
    prompts.write_text(json.dumps([{"id": "p", **prompt}]))
    started = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gptq_diff", "run", "--model", str(model), "--prompt-file", str(prompts)),
            *("--backends", "hf-fp32", "--device", device, "--max-new-tokens", str(tokens), "--capture", "full"),
            *("--out", str(out), "--overwrite", "--json"),
        ],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    return {"exit": done.returncode, "wall_seconds": round(time.perf_counter() - started, 1), "report": report}


def figures(ran: dict[str, Any]) -> dict[str, Any]:
    """What matters of one run: the verdict, what it took, how near it came to the threshold."""
    found = {"exit": ran["exit"], "wall_seconds": ran["wall_seconds"]}
    for skipped in ran["report"]["skipped_backends"]:
        found["skipped"] = skipped["reason"]
    for result in ran["report"]["results"]:
        keys = ("status", "tokens", "text", "worst_excess", "seconds", "peak_private_bytes", "peak_gpu_bytes")
        found |= {key: result[key] for key in keys}
        found["compared"] = result["layers"]["compared"]
        found["gpu"] = result["versions"].get("gpu")
    return found


def apart(a: Path, b: Path) -> dict[str, Any]:
    """The largest relative l2 between two runs' inputs, outputs and first logits; steps in which both saw the same."""
    one, two = (RunDir(place).reader("hf-fp32", "p") for place in (a, b))
    steps = 1
    while steps < min(one.manifest.steps, two.manifest.steps) and (
        one.manifest.tokens[:steps] == two.manifest.tokens[:steps]
    ):
        steps += 1
    found: dict[str, Any] = {"steps": steps, "logits": distance(one.first_logits(), two.first_logits())}
    for side in ("in", "out"):
        worst = (0.0, "", 0)
        for step in range(steps):
            for layer in one.manifest.order:
                size = distance(one.tensor(step, layer, side), two.tensor(step, layer, side))
                worst = max(worst, (size, layer, step))
        found[side] = {"l2_rel": worst[0], "layer": worst[1], "step": worst[2]}
    return found


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """l2 of the difference over l2 of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def engine_alone(model: Path, device: str, *, keep: bool) -> dict[str, Any]:
    """Two prefills of 37 ids without a tap; keep: packed weights and lm_head stay on the GPU while half of it holds."""
    gpu_peak()
    started = time.perf_counter()
    spec = LoadSpec("transformers", model, "float32", device, trust_remote_code=False, threads=0, seed=0)
    engine = HfEngine(spec, spare_bytes if keep else lambda _: 0)
    engine.use_kernel("exact")
    loaded = time.perf_counter() - started
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        tokens = engine.generate(tuple(IDS), max_new_tokens=1, forced=None, tap=None).tokens
        seconds.append(round(time.perf_counter() - started, 3))
    return {
        "keep": keep, "load_seconds": round(loaded, 2), "prefill_seconds": seconds, "tokens": list(tokens),
        "peak_gpu_bytes": gpu_peak(), "kept_bytes": engine.kept_bytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for models and tensors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--part", nargs="*", default=["smollm2", "synthetic", "streamed"])
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    slice_ = asked.place / f"{SYNTHETIC}-{asked.blocks}"
    building = start_build(asked.blocks, slice_) if {"synthetic", "streamed"} & set(asked.part) else None
    found: dict[str, Any] = {"torch": torch.__version__, "gpu": "none", "blocks": asked.blocks}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if "smollm2" in asked.part:
        places = {device: asked.place / f"smollm2-{device}" for device in (asked.device, "cpu")}
        chat = {"messages": MESSAGES}
        ran = {device: run(asked.smollm2, chat, device, 8, place) for device, place in places.items()}
        found["smollm2"] = {device: figures(one) for device, one in ran.items()}
        if all(one["report"]["results"] for one in ran.values()):
            same = len({tuple(one["report"]["results"][0]["tokens"]) for one in ran.values()}) == 1
            found["smollm2"]["same_tokens"] = same
            found["smollm2"]["apart"] = apart(*places.values())
        print(json.dumps(found["smollm2"], ensure_ascii=False), flush=True)
    if building is not None and building.wait() != 0:
        raise SystemExit("the slice could not be built")
    found["built_after_seconds"] = round(time.perf_counter() - started, 1)
    if "synthetic" in asked.part:
        found["synthetic"] = figures(run(slice_, {"token_ids": IDS}, asked.device, 2, asked.place / "synthetic"))
        print(json.dumps(found["synthetic"]), flush=True)
    if "streamed" in asked.part:
        found["streamed"] = [engine_alone(slice_, asked.device, keep=keep) for keep in (True, False)]
        print(json.dumps(found["streamed"]), flush=True)
    found["seconds"] = round(time.perf_counter() - started, 1)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
