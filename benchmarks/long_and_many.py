"""Many prompts through one load of each backend, and one long prompt: time, memory, disk, and what was left out.

    python -m benchmarks.long_and_many [--only many|long] [--prompts 200] [--tokens 4000] [--scratch DIR] [--out FILE]

SmolLM2, the prefill alone, with the default budget of `--capture auto`. Until everything is judged all captures are on
the disk: 5 GB for 200 short prompts, 8 GB for one of 4,000 tokens. Each part is written as soon as it is measured, with
what it was measured on; what --only leaves out stays as FILE has it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import smollm2
from benchmarks.machine import machine
from benchmarks.run import RESULTS, write
from benchmarks.watched import run_watched
from gptq_diff.cli.threads import wait_without_spinning

BACKENDS = "hf-fp32,hf-fp16,sim-gptq"


def main() -> None:
    """Measure both, print a line each, write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_and_many", description="Long prompts, and many.")
    parser.add_argument("--only", choices=("many", "long"), help="measure that part alone; default: both")
    parser.add_argument("--prompts", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="for runs; default: the system's place")
    parser.add_argument("--out", type=Path, default=RESULTS / "long_and_many.json", help="default: %(default)s")
    given = parser.parse_args()
    wait_without_spinning()
    long = [[1, *(100 + 37 * i % 40000 for i in range(given.tokens - 1))]]
    for part, prompts in {"many": short_prompts(given.prompts), "long": long}.items():
        if given.only in (None, part):
            add(given.out, part, measured(prompts, given.scratch))


def add(out: Path, part: str, row: dict[str, Any]) -> None:
    """Put that part's row into the file, beside what is there of the other."""
    there = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    write(out, {**there, part: row})


def short_prompts(count: int) -> list[list[int]]:
    """Token ids of so many prompts, 6 to 20 each."""
    return [[1, *(100 + (7 * n + 13 * i) % 40000 for i in range(5 + n % 15))] for n in range(count)]


def measured(prompts: list[list[int]], scratch: Path | None) -> dict[str, Any]:
    """One run over these prompts, and what it ran on."""
    measured_on = machine()
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        file, out = Path(place) / "prompts.json", Path(place) / "run"
        file.write_text(json.dumps([{"id": f"p{n}", "token_ids": ids} for n, ids in enumerate(prompts)]))
        asked = ["run", "--model", str(smollm2.model()), "--prompt-file", str(file), "--backends", BACKENDS]
        watched = run_watched([*asked, "--max-new-tokens", "1", "--quiet"], out)
        kept = sum(f.stat().st_size for f in (out / "captures").rglob("*.safetensors"))
    results = watched.report["results"]
    measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
    row = {
        "machine": measured_on,
        "prompts": len(prompts), "tokens": sum(map(len, prompts)), "wall_seconds": round(watched.wall, 1),
        "cpu_seconds": round(watched.cpu, 1), "judged_seconds": round(watched.judged, 1),
        "load_seconds": {r["backend"]: r["seconds"]["load"] for r in results},
        "generate_seconds": {r["backend"]: round(r["seconds"]["generate"], 1) for r in results},
        "worker_bytes": watched.worker, "parent_bytes": watched.parent, "kept_bytes": kept,
        "left_out": watched.report["left_out"],
        "status": {b: sorted({r["status"] for r in results if r["backend"] == b}) for b in BACKENDS.split(",")},
        "compared": sorted({r["layers"]["compared"] for r in results}),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
