"""What the exllama kernels of AutoGPTQ 0.7.1 and GPTQModel 7.7.0 do with the inputs that break vLLM's.

python -m benchmarks.gpu.exllama_upstream --sources DIR --builds DIR --linear FILE.safetensors --out FILE.json

sources: see benchmarks/gpu/build_upstream.py. linear: from benchmarks/gpu/captured_linear.py. Every kernel is compiled,
and every part of the experiment on it run, in a process of its own with a time limit: a failure is written down and
costs nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu.build_upstream import KERNELS, build, live
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels.exllama_live import LiveExllama, Prepared, probe
from gptq_diff.records import LayerSpec

BUILD_SECONDS = 280
PART_SECONDS = 90
SHAPE = (27648, 5120, 128)
"""K, N and group size of the outlier's linear: the largest of Qwen2.5-32B."""
ACTIVATIONS = (8180.0, 8190.0, 12000.0)
OUTLIER_ROWS = (1, 7, 8, 9, 37, 50, 51)
LINEAR_ROWS = (1, 7, 8, 9, 37, 50, 51, 64)
REPEATS = 20
FILLS = {"zero": 0.0, "one": 1.0, "nan": float("nan")}
DEVICE = "cuda:0"


def packed(k: int, n: int, group: int, stored_GN: torch.Tensor, largest_scale: float) -> PackedLinear:
    """Random codes, these stored zero points, random scales up to `largest_scale`; on the CPU."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (k // 8, n), generator=draw, dtype=torch.int64).to(torch.int32)
    nibbles = stored_GN.reshape(len(stored_GN), n // 8, 8).to(torch.int64) << torch.arange(0, 32, 4)
    total = nibbles.sum(dim=2)
    zeros = torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)
    scales = (largest_scale * (0.3 + 0.7 * torch.rand(stored_GN.shape, generator=draw))).to(torch.float16)
    spec = LayerSpec("random", k, n, 4, group, sym=False, desc_act=False, format="gptq", has_bias=False)
    return PackedLinear(spec, words, zeros, scales, None, None)


def figures(y_MN: torch.Tensor, exact_MN: torch.Tensor) -> dict[str, Any]:
    """Non-finite outputs, counted first, and the error of the others."""
    bad = ~torch.isfinite(y_MN)
    error = torch.where(bad, 0.0, y_MN.double() - exact_MN)
    size = torch.where(bad, 0.0, exact_MN)
    return {
        "elements": y_MN.numel(), "nonfinite": int(bad.sum()), "nonfinite_in_row_0": int(bad[0].sum()),
        "first": torch.nonzero(bad)[:4].tolist(), "exact_absmax": round(float(exact_MN.abs().max()), 3),
        "l2_rel_of_the_finite": float(error.norm() / size.norm()) if bool((~bad).any()) else None,
    }  # fmt: skip


def path_of(kernel: LiveExllama, rows: int) -> str | None:
    """Which path so many rows take; None where no clear border was found."""
    try:
        return kernel.fused if rows <= kernel.fused_rows else "exllama-reconstruct"
    except BackendError:
        return None


def repeats(kernel: LiveExllama, x_MK: torch.Tensor, weight: Prepared, times: int) -> dict[str, Any]:
    """How many different results, by their bits, the same call gives; and what it makes of memory written before."""
    runs = [kernel.run(x_MK, weight).clone() for _ in range(times)]
    distinct = {run.view(torch.int16).cpu().numpy().tobytes() for run in runs}
    counts = [int((~torch.isfinite(run)).sum()) for run in runs]
    filled = {}
    for name, value in FILLS.items():
        out = torch.full_like(runs[0], value)
        kernel.run(x_MK, weight, out)
        filled[name] = int((~torch.isfinite(out)).sum())
    return {"runs": times, "distinct": len(distinct), "nonfinite": [min(counts), max(counts)], "into_filled": filled}


def border(kernel: LiveExllama, linear: Path) -> dict[str, Any]:  # noqa: ARG001  all parts are called alike
    """For every M up to 64: whether M equal rows give the bits of one row alone, on one block of K (no atomics)."""
    weight = kernel.prepare(probe())
    draw = torch.Generator().manual_seed(7)
    x_1K = torch.randn((1, probe().spec.in_features), generator=draw).to(device=DEVICE, dtype=torch.float16)
    alone = kernel.run(x_1K, weight)[0].clone()
    like_one = [m for m in range(1, 65) if torch.equal(y := kernel.run(x_1K.repeat(m, 1), weight), alone.expand_as(y))]
    found: dict[str, Any] = {"rows_with_the_bits_of_one": like_one, "one_row": repeats(kernel, x_1K, weight, REPEATS)}
    try:
        return {**found, "fused_rows": kernel.fused_rows}
    except BackendError as e:
        return {**found, "fused_rows": None, "why": str(e)}


def outlier(kernel: LiveExllama, linear: Path) -> list[dict[str, Any]]:  # noqa: ARG001
    """K=27648, N=5120, groups of 128, symmetric; standard normal x with one activation of A in every row."""
    k, n, group = SHAPE
    model = packed(k, n, group, torch.full((k // group, n), 7), 0.006)
    weight = kernel.prepare(model)
    w_KN = dequantise(model, torch.float32).to(DEVICE).double()
    found = []
    for a in ACTIVATIONS:
        x_MK = torch.randn((max(OUTLIER_ROWS), k), generator=torch.Generator().manual_seed(1))
        x_MK[:, 13] = a
        x_MK = x_MK.to(device=DEVICE, dtype=torch.float16)
        exact_MN = x_MK.double() @ w_KN
        for m in OUTLIER_ROWS:
            y_MN = kernel.run(x_MK[:m].contiguous(), weight)
            again = repeats(kernel, x_MK[:m].contiguous(), weight, 5)
            found.append({
                "activation": a, "as_half": float(x_MK[0, 13]), "rows": m, "path": path_of(kernel, m),
                **figures(y_MN, exact_MN[:m]), "repeats": again,
            })  # fmt: skip
    return found


def captured(kernel: LiveExllama, linear: Path) -> dict[str, Any]:
    """The captured x of a checkpoint's linear on its own packed weight; more rows than captured begin anew."""
    tensors = load_file(linear)
    k, n, groups = tensors["x"].shape[1], tensors["qweight"].shape[1], tensors["scales"].shape[0]
    spec = LayerSpec("captured", k, n, 4, k // groups, sym=True, desc_act=False, format="gptq", has_bias=False)
    model = PackedLinear(spec, tensors["qweight"], tensors["qzeros"], tensors["scales"], None, None)
    weight, x_MK = kernel.prepare(model), tensors["x"].to(device=DEVICE, dtype=torch.float16)
    exact_MN = x_MK.double() @ dequantise(model, torch.float64).to(DEVICE)
    found = []
    for m in LINEAR_ROWS:
        rows = torch.arange(m, device=DEVICE) % len(x_MK)
        part = x_MK[rows].contiguous()
        found.append({
            "rows": m, "path": path_of(kernel, m), **figures(kernel.run(part, weight), exact_MN[rows]),
            "repeats": repeats(kernel, part, weight, REPEATS),
        })  # fmt: skip
    return {"k": k, "n": n, "groups": groups, "x_absmax": float(x_MK.abs().max()), "calls": found}


def zeros(kernel: LiveExllama, linear: Path) -> list[dict[str, Any]]:  # noqa: ARG001
    """Stored zero point 15 in two columns, 4 next to them: which reading of it explains what comes out."""
    k, n, group, columns = 256, 64, 128, (5, 20)
    stored = torch.randint(0, 15, (k // group, n), generator=torch.Generator().manual_seed(3))
    stored[:, list(columns)] = 15
    stored[:, [c + 1 for c in columns]] = 4
    model = packed(k, n, group, stored, 0.01)
    weight = kernel.prepare(model)
    codes_KN = torch.stack([(model.qweight >> shift) & 15 for shift in range(0, 32, 4)], dim=1).reshape(k, n)
    carried = (stored + 1) & 15
    carried[:, [c + 1 for c in columns]] += 1
    readings = {"16": stored + 1, "0": (stored + 1) & 15, "0, and 1 more next to it": carried}
    found = []
    for m in (1, 64):
        x_MK = torch.randn((m, k), generator=torch.Generator().manual_seed(4)).to(torch.float16)
        y_MN = kernel.run(x_MK.to(DEVICE), weight).double().cpu()
        errors = {}
        for name, zero_GN in readings.items():
            groups = torch.arange(k) // group
            exact = x_MK.double() @ ((codes_KN - zero_GN[groups]).double() * model.scales.double()[groups])
            apart = torch.linalg.vector_norm(y_MN - exact, dim=0) / torch.linalg.vector_norm(exact, dim=0)
            errors[name] = {
                "columns_with_15": max(float(apart[c]) for c in columns),
                "columns_after_them": max(float(apart[c + 1]) for c in columns), "all": float(apart.max()),
            }  # fmt: skip
        found.append({"rows": m, "path": path_of(kernel, m), "largest_l2_rel_of_a_column_if_15_means": errors})
    return found


PARTS: dict[str, Callable[[LiveExllama, Path], Any]] = {
    "border": border, "zeros": zeros, "captured": captured, "outlier": outlier,
}  # fmt: skip


def child(asked: argparse.Namespace) -> None:
    """One part of the experiment on one kernel, compiled before."""
    kernel = live(asked.kernel, build(asked.kernel, asked.sources, asked.builds), device=DEVICE)
    made = PARTS[asked.part](kernel, asked.linear)
    torch.cuda.synchronize()
    asked.out.write_text(json.dumps(made))


def process(module: str, asked: argparse.Namespace, *more: str) -> tuple[subprocess.Popen[str], Path]:
    """That module in a process of its own, and the file that it will write."""
    out = Path(tempfile.mkdtemp(prefix="upstream-")) / "out.json"
    command = [
        sys.executable, "-m", module, "--sources", asked.sources, "--builds", asked.builds, "--out", out, *more,
    ]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True), out


def outcome(running: tuple[subprocess.Popen[str], Path], seconds: float) -> Any:
    """What it wrote; else why it did not, in the last line of its errors. Its folder is gone afterwards."""
    started = time.perf_counter()
    worker, out = running
    try:
        _, errors = worker.communicate(timeout=seconds)
        if worker.returncode or not out.exists():
            said = errors.strip().splitlines() or ["nothing"]
            return {"error": said[-1].strip()[:300], "status": worker.returncode}
        return {"result": json.loads(out.read_text()), "seconds": round(time.perf_counter() - started, 1)}
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()
        return {"error": f"not done after {seconds:g} s"}
    finally:
        shutil.rmtree(out.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--builds", type=Path, required=True)
    parser.add_argument("--linear", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kernel", choices=list(KERNELS), help="with --part: only that, in this process")
    parser.add_argument("--part", choices=list(PARTS))
    asked = parser.parse_args()
    if asked.kernel and asked.part:
        child(asked)
        return
    report: dict[str, Any] = {
        "what": "exllama kernels compiled from upstream's sources: AutoGPTQ v0.7.1 (git tag), GPTQModel 7.7.0 (sdist)",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "torch": torch.__version__,
        "cuda": torch.version.cuda, "python": sys.version.split()[0],
        "date": datetime.now(timezone.utc).date().isoformat(), "kernels": {},
    }  # fmt: skip
    building = {
        name: process("benchmarks.gpu.build_upstream", asked, "--kernel", name) for name in KERNELS
    }  # at the same time
    for name, running in building.items():
        report["kernels"][name] = {"build": outcome(running, BUILD_SECONDS)}
        asked.out.write_text(json.dumps(report, indent=1))
    for name, found in report["kernels"].items():
        if not found["build"].get("result", {}).get("built"):
            continue
        for part in PARTS:
            more = ("--kernel", name, "--part", part, "--linear", str(asked.linear))
            found[part] = outcome(process("benchmarks.gpu.exllama_upstream", asked, *more), PART_SECONDS)
            print(name, part, found[part].get("error", f"{found[part].get('seconds')} s"), flush=True)
            asked.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
