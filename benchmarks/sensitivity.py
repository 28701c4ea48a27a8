"""How mild a fault is still found: detection rate by size of the fault, path and number of rows.

    .venv/bin/python -m benchmarks.sensitivity [--seeds 40]

One healthy run brings the inputs of every linear. Then each seed takes a linear and a group of it at random, lets the
path's kernel multiply the captured input with the fault planted (tests/faults/plant.py), and asks the judge. Earlier
linears are healthy, so a fault that is found here is the first bad layer of the run. Writes
benchmarks/results/sensitivity.json and docs/sensitivity.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch

from gptq_diff.checkpoint.dequant import dequantise, group_of_row
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.judge import FACTOR, CapturedCall, judge_layer
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions
from tests.faults import plant, runner

ROOT = Path(__file__).resolve().parents[1]
PATHS = {"fp16": "fp16", "exllama-fast": "sim-exllama", "exllama-reconstruct": "sim-reconstruct"}
POWERS = tuple(range(2, 15))
COLUMNS = (1.0, 0.25, 1 / 16, 1 / 64, 0.0)  # shares of the columns; 0 stands for a single one
ROWS = (37, 1)


def inputs(model: Path, ids: list[int], out: Path) -> dict[str, torch.Tensor]:
    """Input of every linear in the prefill."""
    with torch.inference_mode():
        reader = runner.capture(runner.engine(model), "fp16", ids, out)
    return {name: reader.tensor(0, name, "in").clone() for name in reader.manifest.order}


def verdict(weight, path, x_MK, y_MN) -> tuple[bool, float]:
    (judged,) = judge_layer(weight, [CapturedCall(0, 0, path, x_MK, y_MN, None)])
    return judged.kind != "ok", judged.excess or 0.0


def one_seed(checkpoint, captured, path, rows, rng) -> dict[str, bool]:
    """Fault -> found, for one random linear and group."""
    spec = checkpoint.layers[rng.integers(len(checkpoint.layers))]
    linear, weight = checkpoint.packed(spec.name), layer_weight(spec, checkpoint, checkpoint)
    x_MK = captured[spec.name]
    x_MK = x_MK[1 : 1 + rows] if rows == 1 else x_MK[:rows]
    kernel = make_kernel(PATHS[path])
    y_MN = kernel.multiply(x_MK, linear).y_MN
    found = {"healthy": verdict(weight, path, x_MK, y_MN)[0]}
    group = group_of_row(linear) == int(rng.integers(spec.groups))
    w_KN = dequantise(linear, torch.float32)
    for name, rows_K in (("one group", group), ("every group", torch.ones_like(group))):
        change_MN = x_MK.float()[:, rows_K] @ w_KN[rows_K]
        for power in POWERS:
            off_MN = (y_MN.float() + 2.0**-power * change_MN).half()
            found[f"scale, {name}, 2^-{power}"] = verdict(weight, path, x_MK, off_MN)[0]
    packed = {k: getattr(linear, k).numpy() for k in ("qweight", "qzeros", "scales")}
    for share in COLUMNS:
        off = torch.from_numpy(plant.shift_zero(packed, spec.bits, rng, share)["qzeros"])
        damaged = dataclasses.replace(linear, qzeros=off)
        y = make_kernel(PATHS[path]).multiply(x_MK, damaged).y_MN
        found[f"zero, {share:g}"] = verdict(weight, path, x_MK, y)[0]
    return found


def measure(name: str, model: Path, ids: list[int], seeds: int) -> list[dict[str, object]]:
    rows_of_results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, open_checkpoint(model) as checkpoint:
        captured = inputs(model, ids, Path(scratch) / "capture")
        for path in PATHS:
            for rows in ROWS:
                found = [one_seed(checkpoint, captured, path, rows, np.random.default_rng(s)) for s in range(seeds)]
                rates = {fault: sum(f[fault] for f in found) / seeds for fault in found[0]}
                rows_of_results.append({"model": name, "path": path, "rows": rows, "rates": rates})
                print(name, path, rows, rates["healthy"], flush=True)
    return rows_of_results


def table(results, kind: str, columns: list[tuple[str, str]]) -> list[str]:
    lines = [
        "| model | path | rows | " + " | ".join(head for head, _ in columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for r in results:
        cells = [f"{100 * r['rates'][key]:.0f}" for _, key in columns]
        lines.append(f"| {r['model']} | {r['path']} | {r['rows']} | " + " | ".join(cells) + " |")
    return [f"## {kind}", "", *lines, ""]


def document(results, seeds: int) -> str:
    def powers(where: str) -> list[tuple[str, str]]:
        return [(f"2^-{p}", f"scale, {where}, 2^-{p}") for p in POWERS]

    shares = [("one column" if s == 0 else f"{s:.3g} of them", f"zero, {s:g}") for s in COLUMNS]
    healthy = max(r["rates"]["healthy"] for r in results)
    lines = [
        "# How mild a fault is still found", "",
        f"Share of {seeds} seeds, in per cent, in which the fault was found; each seed takes a linear and a group at "
        f"random. One configuration throughout: {FACTOR:g} times the noise floor. Healthy calls in which something was "
        f"found: {100 * healthy:.0f} per cent.", "",
        "Measured with `.venv/bin/python -m benchmarks.sensitivity" + f" --seeds {seeds}` on a CPU "
        f"({platform.machine()}, torch {torch.__version__}); the exllama paths are simulated. tiny-qwen2 has K = 128 "
        "and 256, SmolLM2-135M K = 576 and 1536. 37 rows are a prefill, 1 row is a decode step (a token that is not "
        "the first). The figures are in benchmarks/results/sensitivity.json.", "",
        *table(results, "Scales of one group too large by this share", powers("one group")),
        *table(results, "All scales of a linear too large by this share", powers("every group")),
        *table(results, "Zero points of one group off by one, in this share of its columns", shares),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=40)
    arguments.add_argument("--models", default="tiny-qwen2,smollm2")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    ids = [int(v) for v in np.random.default_rng(0).integers(0, 500, 36)]
    results = []
    for name in asked.models.split(","):
        start = 510 if name == "tiny-qwen2" else 1  # <|im_start|>
        model = build_model(name, BuildOptions(group_size=32) if name == "tiny-qwen2" else BuildOptions())
        results += measure(name, model, [start, *ids], asked.seeds)
    out = ROOT / "benchmarks" / "results" / "sensitivity.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"seeds": asked.seeds, "factor": FACTOR, "torch": torch.__version__, "results": results}
    out.write_text(json.dumps(record, indent=1) + "\n")
    (ROOT / "docs" / "sensitivity.md").write_text(document(results, asked.seeds))


if __name__ == "__main__":
    main()
