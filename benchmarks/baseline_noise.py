"""How much local errors change when sums are made in another order: python -m benchmarks.baseline_noise [--orders N]

The fused path adds slices of K in half by atomics, in no fixed order. Here the simulated kernel does so in N orders on
one prompt, in random models and in SmolLM2, and each order is held against each other as a baseline: how many
regressions it would call (none, if the rule is right), the largest growth of a linear's error, the largest error in
floors, and the largest growth of the geometric mean over all of a model's.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.healthy import SplitK
from benchmarks.faults.lab import capture, load, scratch
from benchmarks.faults.models import texts_of
from gptq_diff.cases.baseline import GROWTH, TYPICAL, Entry, Known, grown_in
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.judge import CapturedCall, judge_layer
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.jobs import Job
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions
from gptq_diff.records import Figures, LinearError

OUT = Path(__file__).parent / "results" / "baseline-noise.json"
KERNEL, PATH = "sim-exllama", "exllama-fast"
WIDE = {"hidden": 512, "intermediate": 1536, "heads": 8, "kv_heads": 8}
MODELS = {
    "tiny-qwen2, 512 wide": ("tiny-qwen2", BuildOptions(group_size=128, **WIDE)),
    "tiny-qwen2, 512 wide, asymmetric": ("tiny-qwen2", BuildOptions(group_size=64, sym=False, **WIDE)),
    "tiny-qwen2, 512 wide, activation order": ("tiny-qwen2", BuildOptions(group_size=64, desc_act=True, **WIDE)),
    "tiny-qwen2, 512 wide, 3 bit": ("tiny-qwen2", BuildOptions(bits=3, group_size=64, **WIDE)),
    "tiny-qwen2, 512 wide, 8 bit": ("tiny-qwen2", BuildOptions(bits=8, group_size=64, **WIDE)),
    "SmolLM2-135M": ("smollm2", BuildOptions()),
}


def figures_of(path: Path, engine: Any, order: int, out: Path) -> Figures:
    """Every linear's error in the prefill of one prompt, with slices of K added in that order."""
    ids = texts_of(path)[0][:50]
    engine.install(SplitK(make_kernel(KERNEL), np.random.default_rng(order)))
    reader = capture(engine, Job(KERNEL, KERNEL, "p", ids, 1, None, str(out)), out.parent)
    linears = {}
    with open_checkpoint(path) as checkpoint:
        for name in reader.manifest.order:
            x_MK, y_MN = (reader.tensor(0, name, side) for side in ("in", "out"))
            weight = layer_weight(checkpoint.packed(name).spec, checkpoint, checkpoint)
            (judged,) = judge_layer(weight, [CapturedCall(0, 0, PATH, x_MK, y_MN, None)])
            if judged.local_l2_rel is not None and judged.noise_floor:
                linears[name] = LinearError(judged.local_l2_rel, judged.noise_floor, judged.error_share or 1.0)
    reader.close()
    return Figures(KERNEL, "p", "agree", {"*": PATH}, {}, linears)


def entry(figures: Figures) -> Entry:
    """A baseline of that one run."""
    known = {name: Known(one.error, one.error, one.floor) for name, one in figures.linears.items()}
    return Entry(figures.backend, figures.prompt, figures.status, {}, {}, 1, known)


def compared(orders: list[Figures]) -> dict[str, Any]:
    """Every order held against every other."""
    called, largest, floors, mean, count = 0, 0.0, 0.0, 0.0, 0
    for before, now in permutations(orders, 2):
        called += len(grown_in(now, entry(before)))
        logs = []
        for name, one in now.linears.items():
            old = before.linears[name]
            logs.append(np.log(one.error / old.error))
            largest, floors = max(largest, one.error / old.error), max(floors, one.error / old.floor)
        count += len(logs)
        mean = max(mean, float(np.exp(np.mean(logs))))
    return {
        "comparisons": count, "regressions": called, "largest": round(largest, 3), "floors": round(floors, 3),
        "mean": round(mean, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    found: dict[str, Any] = {"orders": asked.orders, "growth": GROWTH, "typical": TYPICAL, "models": {}}
    with scratch() as folder:
        for number, (name, (model, options)) in enumerate(MODELS.items()):
            path = build_model(model, options)
            engine = load(path, "float16", 2)
            orders = [figures_of(path, engine, n, folder / f"noise-{number}-{n}") for n in range(asked.orders)]
            found["models"][name] = compared(orders)
            print(name, json.dumps(found["models"][name]), flush=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
