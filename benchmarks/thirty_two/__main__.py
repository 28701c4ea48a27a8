"""Time and memory of whole runs at a 32B model's shape, on a CPU, each beside what the machine allows.

    python -m benchmarks.thirty_two --model DIR [--scratch DIR] [--blocks 2,4,8,16] [--only NAME,NAME] [--out FILE]

DIR holds `gptq-diff model build synthetic-qwen2.5-32b` (18 GB) and is built where it is not there. The model is read
once before anything is timed, so that it lies in the page cache. Captures and reports go below --scratch (1 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.memory import MODEL, TOKEN_IDS
from benchmarks.run import RESULTS, write
from benchmarks.thirty_two.floors import Floors, floors, size_of
from benchmarks.thirty_two.planted import planted
from benchmarks.thirty_two.slices import first_blocks
from benchmarks.watched import Watched, run_watched
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift

RUNS = {
    "hf-fp32": (("--backends", "hf-fp32"), 120, 2),
    "hf-fp16": (("--backends", "hf-fp16"), None, 4),
    "targeted": (("--backends", "sim-exllama", "--simulate", "targeted"), 180, 3),
    "all": (("--backends", "sim-exllama", "--simulate", "all"), 480, 4),
}
"""Name -> options, most seconds, products with all weights that nobody can do without: one for each backend that runs,
the reference included, and one to judge each linear of each backend by."""
MOST_BYTES = 4 * 2**30
SEED = 20
"""Of the block that is planted."""


def main() -> None:
    """Measure, print a line each, write them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thirty_two", description="A 32B model on a laptop.")
    parser.add_argument("--model", type=Path, required=True, help="built there if it is not")
    parser.add_argument("--scratch", type=Path, help="for runs; default: the system's place")
    parser.add_argument("--blocks", default="2,4,8,16", help="slices, beside the whole; default: %(default)s")
    parser.add_argument("--only", default=",".join([*RUNS, "planted", "slices"]), help="of: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "thirty_two.json", help="default: %(default)s")
    given = parser.parse_args()
    wait_without_spinning()
    if not given.model.is_dir():
        build_model(MODEL, BuildOptions(), given.model)
    measured_on = machine()
    earlier = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        bench = Bench(given.model, Path(scratch))
        found: dict[str, Any] = {**earlier, "floors": asdict(bench.floors), "model_bytes": size_of(given.model)}
        print(json.dumps(found["floors"]), flush=True)
        for name in given.only.split(","):
            found[name] = bench.measure(name, [int(b) for b in given.blocks.split(",") if b])
            print(name, json.dumps(found[name]), flush=True)
            measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
            write(given.out, {**found, "machine": measured_on})


class Bench:
    """One model, and where its runs go."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.model = model
        self.scratch = scratch
        with open_checkpoint(model) as checkpoint:
            self.config = dict(checkpoint.config)
            self.floors: Floors = floors(checkpoint, len(TOKEN_IDS))
            self.group_size = checkpoint.layers[0].group_size
        self.blocks: int = self.config["num_hidden_layers"]
        self.prompts = scratch / "prompts.json"
        ids = [i % self.config["vocab_size"] for i in TOKEN_IDS]
        self.prompts.write_text(json.dumps([{"id": "p", "token_ids": ids}]), encoding="utf-8")

    def measure(self, name: str, blocks: list[int]) -> Any:
        """One of RUNS, the planted case, or the slices."""
        if name == "slices":
            return [self._slice(count) for count in [*(b for b in blocks if b < self.blocks), self.blocks]]
        if name == "planted":
            return self._planted()
        options, most, products = RUNS[name]
        row = figures(self._run(self.model, options))
        floor = self.floors.seconds(products, products)
        return {**row, "most_seconds": most, "floor_seconds": floor, "of_floor": row["wall_seconds"] / floor}

    def _run(self, model: Path, options: tuple[str, ...]) -> Watched:
        out = self.scratch / "run"
        shutil.rmtree(out, ignore_errors=True)
        asked = ["run", "--model", str(model), "--prompt-file", str(self.prompts), "--max-new-tokens", "1", "--quiet"]
        return run_watched([*asked, *options], out)

    def _slice(self, blocks: int) -> dict[str, Any]:
        """The reference and the targeted simulator in one run."""
        model = self.model
        if blocks < self.blocks:
            model = first_blocks(self.model, blocks, self.scratch / f"blocks-{blocks}")
        return {"blocks": blocks, **figures(self._run(model, RUNS["targeted"][0]))}

    def _planted(self) -> dict[str, Any]:
        """The command that a GPU gets too, with other backends; the bound decides what is simulated."""
        block = random.Random(SEED).randrange(self.blocks)
        group = 2 * self.config["intermediate_size"] // 3 // self.group_size  # the massive channel's
        with planted(self.model, GainShift(block, group, 8)) as layer:
            watched = self._run(self.model, ("--backends", "sim-exllama,sim-gptq", "--simulate", "targeted"))
        first = {r["backend"]: r["first_bad"] and r["first_bad"]["layer"] for r in watched.report["results"]}
        return {
            **figures(watched), "planted": layer, "named": first, "verdict": watched.report["verdict"]["summary"],
            "right": first == {"hf-fp32": None, "sim-exllama": layer, "sim-gptq": layer},
        }  # fmt: skip


def figures(watched: Watched) -> dict[str, Any]:
    """Seconds and bytes of one run, by backend where they are a backend's."""
    results = watched.report["results"]
    peaks = [r["peak_private_bytes"] for r in results]
    return {
        "wall_seconds": watched.wall, "cpu_seconds": watched.cpu,
        "captured_seconds": watched.captured, "judged_seconds": watched.judged,
        "seconds": {r["backend"]: r["seconds"] for r in results},
        "compared": {r["backend"]: r["layers"]["compared"] for r in results},
        "bounded": {r["backend"]: r["layers"].get("bounded", 0) for r in results},
        "status": {r["backend"]: r["status"] for r in results},
        "worker_bytes": max([watched.worker, *peaks]), "parent_bytes": watched.parent,
        "together_bytes": watched.together, "most_bytes": MOST_BYTES,
    }  # fmt: skip


if __name__ == "__main__":
    main()
