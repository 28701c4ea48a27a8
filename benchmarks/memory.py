"""Memory and time of `hf-fp32` on slices of a model with Qwen2.5-32B's shapes: what grows with the blocks, what not.

    python -m benchmarks.memory [--blocks 2,4,8] [--scratch DIR] [--out FILE]

Builds one slice after another below DIR (3.1 GB of embeddings and 0.27 GB a block), runs it, and removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.run import RESULTS, write
from benchmarks.watched import Watched, run_watched
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

MODEL = "synthetic-qwen2.5-32b"
REQUIRED = 3 * 2**30
"""Bytes of anonymous and shared memory, at 8 blocks."""
TOKEN_IDS = (151644, *(7919 * i % 151000 for i in range(1, 37)))
"""37 ids over the whole vocabulary, the first as real prompts have it."""


def main(arguments: list[str] | None = None) -> None:
    """Measure every slice, print a line each, write them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory at a 32B model's shapes.")
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")
    parser.add_argument("--blocks", default="2,4,8", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="where slices are built; default: the system's place")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json", help="default: %(default)s")
    given = parser.parse_args(arguments)
    measured_on = machine()
    slices = []
    for blocks in map(int, given.blocks.split(",")):
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            slices.append(measure(given.model, blocks, Path(scratch)))
        print(json.dumps(slices[-1]), flush=True)
    peak = max(s["peak_private_bytes"] for s in slices)
    print(f"peak {peak / 2**30:.2f} GiB, required < 3: {'ok' if peak < REQUIRED else 'MISSED'}")
    measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
    write(given.out, {"machine": measured_on, "model": given.model, "required_bytes": REQUIRED, "slices": slices})


def measure(model: str, blocks: int, scratch: Path) -> dict[str, float]:
    """Build a slice and run it once."""
    started = time.perf_counter()
    directory = build_model(model, BuildOptions(blocks=blocks), scratch / "model")
    built = time.perf_counter() - started
    prompts = scratch / "prompts.json"
    ids = TOKEN_IDS if model == MODEL else tuple(i % 500 for i in TOKEN_IDS)
    prompts.write_text(json.dumps([{"id": "p", "token_ids": ids}]), encoding="utf-8")
    command = ["run", "--model", str(directory), "--prompt-file", str(prompts)]
    watched = run_watched([*command, "--backends", "hf-fp32", "--max-new-tokens", "1"], scratch / "run")
    size = sum(f.stat().st_size for f in directory.iterdir())
    return {"blocks": blocks, "checkpoint_bytes": size, "build_seconds": round(built, 1), **_figures(watched)}


def _figures(watched: Watched) -> dict[str, float]:
    """Bytes and seconds of one run; worker: as its launcher sampled it, and as this benchmark did."""
    result = watched.report["results"][0]
    load, generate = result["seconds"]["load"], result["seconds"]["generate"]
    return {
        "peak_private_bytes": max(result["peak_private_bytes"], watched.worker, watched.parent, watched.together),
        "worker_bytes": max(result["peak_private_bytes"], watched.worker),
        "judging_bytes": watched.parent,
        "together_bytes": watched.together,
        "worker_rss_bytes": result["peak_rss_bytes"],
        "load_seconds": round(load, 1),
        "generate_seconds": round(generate, 1),
        "judge_seconds": round(watched.judged, 1),
        "wall_seconds": round(watched.wall, 1),
    }


if __name__ == "__main__":
    main()
