"""The GPTQ kernels of many releases on the same captured layer: what is lost, how far off, the same bits or not.

python -m benchmarks.gpu.releases --sources PACKS --linear FILE.safetensors --place DIR --out FILE.json

sources: what `gptq-diff kernels fetch RELEASE... --out PACKS` wrote; every release there is compiled, all at once.
linear: from benchmarks/gpu/captured_linear.py. Two linears are measured: that one with its captured rows, and one of
Qwen2.5-32B's largest shape with random codes and one activation of 8190 in every row. Each release runs in a process of
its own with a time limit: what fails is written down and costs nothing else. `python -m benchmarks.releases` makes the
tables of docs/releases.md of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.exllama_upstream import figures, packed
from gptq_diff.built_file import read_built
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.exllama_live import probe
from gptq_diff.kernels.gptqmodel_ops import ExllamaV2
from gptq_diff.kernels.released import loaded_ops
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT
from gptq_diff.kernels.vllm_ops import VllmGemm
from gptq_diff.records import LayerSpec
from gptq_diff.releases import Release, release_named
from gptq_diff.stage import stage_package
from gptq_diff.upstream.build import How, Outcome, build_all
from gptq_diff.upstream.pack import packs_in, read_pack
from gptq_diff.upstream.store import Store

BUILD_SECONDS, PREPARE_SECONDS, MEASURE_SECONDS = 400, 150, 100
ROWS = (1, 37, 50, 51)
HEALTHY = {FAST: 37, RECONSTRUCT: 51}
"""Path -> rows that it is measured with on healthy input: as vLLM would take it for them."""
REPEATS = 20
SHAPE = (27648, 5120, 128)
OUTLIER = 8190.0
DEVICE = "cuda:0"
TENSORS = ("qweight", "qzeros", "scales", "x", "exact", "healthy_x", "healthy_exact")

Make = Callable[["str | None"], Kernel]
"""Path to force, None for the one that M picks -> a kernel."""


@dataclass(frozen=True)
class Case:
    """A linear with rows that overflow and rows that do not, and the exact answers, all on DEVICE. exact: float64."""

    linear: PackedLinear
    x_MK: torch.Tensor
    exact_MN: torch.Tensor
    healthy_MK: torch.Tensor
    healthy_exact_MN: torch.Tensor


def prepare(linear: Path, place: Path) -> dict[str, Any]:
    """The cases, computed once and written to `place`; what they are."""
    tensors = load_file(linear)
    rows = torch.arange(max(ROWS)) % len(tensors["x"])
    x_MK = tensors["x"][rows].to(torch.float16)
    k, n, groups = x_MK.shape[1], tensors["qweight"].shape[1], tensors["scales"].shape[0]
    spec = LayerSpec("captured", k, n, 4, k // groups, sym=True, desc_act=False, format="gptq", has_bias=False)
    captured = PackedLinear(spec, tensors["qweight"], tensors["qzeros"], tensors["scales"], None, None)
    k, n, group = SHAPE
    random = packed(k, n, group, torch.full((k // group, n), 7), 0.006)
    normal_MK = torch.randn((max(ROWS), k), generator=torch.Generator().manual_seed(1)).to(torch.float16)
    outlier_MK = normal_MK.clone()
    outlier_MK[:, 13] = OUTLIER
    told = {}
    for name, weight, bad_MK, good_MK in (
        ("captured", captured, x_MK, x_MK / 16), ("synthetic", random, outlier_MK, normal_MK),
    ):  # fmt: skip
        w_KN = dequantise(weight, torch.float32).to(DEVICE).double()
        exact = {
            key: (x.to(DEVICE).double() @ w_KN).cpu() for key, x in (("exact", bad_MK), ("healthy_exact", good_MK))
        }
        del w_KN
        kept = {"qweight": weight.qweight, "qzeros": weight.qzeros, "scales": weight.scales, "x": bad_MK}
        save_file({**kept, "healthy_x": good_MK.contiguous(), **exact}, place / f"{name}.safetensors")
        told[name] = {
            "k": weight.spec.in_features, "n": weight.spec.out_features, "group_size": weight.spec.group_size,
            "rows_captured": len(tensors["x"]) if name == "captured" else None,
            "x_absmax": float(bad_MK.abs().max()), "exact_absmax": float(exact["exact"].abs().max()),
            "torch_fp16_l2_rel": _torch_half(weight, good_MK, exact["healthy_exact"]),
        }  # fmt: skip
    return told


def _torch_half(weight: PackedLinear, x_MK: torch.Tensor, exact_MN: torch.Tensor) -> float:
    """What torch's own float16 product is off: the scale by which the kernels' errors are to be read."""
    y_MN = (x_MK.to(DEVICE) @ dequantise(weight, torch.float16).to(DEVICE)).double().cpu()
    return float((y_MN - exact_MN).norm() / exact_MN.norm())


def read_case(name: str, place: Path) -> Case:
    """As `prepare` wrote it."""
    t = {key: tensor.to(DEVICE) for key, tensor in load_file(place / f"{name}.safetensors").items()}
    k, n, groups = t["x"].shape[1], t["qweight"].shape[1], t["scales"].shape[0]
    spec = LayerSpec(name, k, n, 4, k // groups, sym=True, desc_act=False, format="gptq", has_bias=False)
    linear = PackedLinear(spec, t["qweight"], t["qzeros"], t["scales"], None, None)
    return Case(linear, t["x"], t["exact"], t["healthy_x"], t["healthy_exact"])


def repeats(kernel: Kernel, x_MK: torch.Tensor, linear: PackedLinear) -> dict[str, Any]:
    """How many different results, by their bits, the same call gives, and how far the farthest is from the first."""
    runs = [kernel.multiply(x_MK, linear).y_MN.clone() for _ in range(REPEATS)]
    distinct = {run.view(torch.int16).cpu().numpy().tobytes() for run in runs}
    first = runs[0].double()
    apart = max(float((run.double() - first).norm() / first.norm()) for run in runs)
    return {"runs": REPEATS, "distinct": len(distinct), "l2_rel_apart": apart}


def measure(make: Make, cases: Mapping[str, Case]) -> dict[str, Any]:
    """Everything about one release's kernel."""
    by_rows, forced = make(None), {path: make(path) for path in HEALTHY}
    found: dict[str, Any] = {"one_block": one_block(by_rows)}
    for name, case in cases.items():
        lost = {}
        for m in ROWS:
            product = by_rows.multiply(case.x_MK[:m].contiguous(), case.linear)
            lost[str(m)] = {"path": product.path, **figures(product.y_MN, case.exact_MN[:m])}
        healthy = {}
        for path, m in HEALTHY.items():
            x_MK = case.healthy_MK[:m].contiguous()
            product = forced[path].multiply(x_MK, case.linear)
            healthy[path] = {
                "rows": m, **figures(product.y_MN, case.healthy_exact_MN[:m]),
                "repeats": repeats(forced[path], x_MK, case.linear),
                "sha256": digest(product.y_MN),
            }  # fmt: skip
        found[name] = {"lost": lost, "healthy": healthy}
    return found


def one_block(kernel: Kernel) -> dict[str, Any]:
    """The border between the paths, and the bits of both where nothing is added by atomics: 128 rows of K.

    Releases with the same bits here have the same arithmetic.
    """
    x_MK = torch.randn((64, probe().spec.in_features), generator=torch.Generator().manual_seed(9)).to(torch.float16)
    made = {m: kernel.multiply(x_MK[:m].to(DEVICE), probe()) for m in range(1, 65)}
    fused = [m for m, product in made.items() if product.path == FAST]
    return {
        "fused_rows": max(fused, default=0), "fused_sha256": digest(made[37].y_MN),
        "reconstruct_sha256": digest(made[64].y_MN),
    }  # fmt: skip


def digest(y_MN: torch.Tensor) -> str:
    """Of the bits."""
    return hashlib.sha256(y_MN.contiguous().view(torch.int16).cpu().numpy().tobytes()).hexdigest()[:16]


def maker(release: Release, folder: Path) -> Make:
    """Kernels of the library that was compiled there."""
    ops = loaded_ops(folder / read_built(folder).library, release)
    if release.package == "vllm":
        return lambda path: VllmGemm(path, DEVICE, ops=ops, name=str(release))
    return lambda path: ExllamaV2(ops, gptqmodel=True, path=path, device=DEVICE)


def child(asked: argparse.Namespace) -> None:
    """One step in this process: the cases, or one release."""
    if asked.release is None:
        made = prepare(asked.linear, asked.place)
    else:
        cases = {name: read_case(name, asked.place) for name in ("captured", "synthetic")}
        made = measure(maker(release_named(asked.release), asked.built), cases)
    (asked.place / "step.json").write_text(json.dumps(made))


def step(asked: argparse.Namespace, seconds: float, *more: str) -> dict[str, Any]:
    """A child's result, or why there is none."""
    result = asked.place / "step.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.releases", "--step", "--place", str(asked.place), *more]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:g} s"}
    if done.returncode or not result.exists():
        return {"error": (done.stderr.strip().splitlines() or ["nothing"])[-1][:300], "status": done.returncode}
    return {**json.loads(result.read_text()), "seconds": round(time.perf_counter() - started, 1)}


def built(outcome: Outcome, sources: str) -> dict[str, Any]:
    """What is told of a build; no folder of this machine."""
    told: dict[str, Any] = {"sources": sources, "cached": outcome.cached, "failure": outcome.failure}
    if outcome.folder is not None:
        record = read_built(outcome.folder)
        told |= {"seconds": record.seconds, "nvcc": record.nvcc, "torch": record.torch, "arch": record.arch}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, help="folder of source packs")
    parser.add_argument("--linear", type=Path)
    parser.add_argument("--place", type=Path, required=True, help="for compiled kernels and cases")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=8, help="releases compiled at a time")
    parser.add_argument("--arch", help="compute capability, where there is no GPU: to see whether all compile")
    parser.add_argument("--step", action="store_true", help="one part, in this process")
    parser.add_argument("--release")
    parser.add_argument("--built", type=Path)
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    if asked.step:
        child(asked)
        return
    packs = {folder: read_pack(folder) for folder in packs_in(asked.sources)}
    store, staged = Store(asked.place.absolute() / "kernels"), stage_package(asked.place.absolute() / "stage")
    how = How(Path(sys.executable), staged, asked.arch, asked.jobs, BUILD_SECONDS, dict(os.environ))
    started = time.perf_counter()
    outcomes = build_all(list(packs), store, how, lambda event: print(event, flush=True))
    report: dict[str, Any] = {
        "what": "GPTQ kernels of releases, compiled from their source distributions, on the same two linears",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "torch": torch.__version__,
        "cuda": torch.version.cuda, "python": sys.version.split()[0],
        "date": datetime.now(timezone.utc).date().isoformat(),
        "build_seconds": round(time.perf_counter() - started, 1), "cases": {}, "releases": {},
    }  # fmt: skip
    if torch.cuda.is_available():
        report["cases"] = step(asked, PREPARE_SECONDS, "--linear", str(asked.linear))
        print("cases", json.dumps(report["cases"]), flush=True)
    for outcome, pack in zip(outcomes, packs.values(), strict=True):
        told: dict[str, Any] = {"build": built(outcome, pack.digest)}
        if outcome.folder is not None and torch.cuda.is_available():
            more = ("--release", str(outcome.release), "--built", str(outcome.folder))
            told["measured"] = step(asked, MEASURE_SECONDS, *more)
            print(outcome.release, told["measured"].get("error", f"{told['measured'].get('seconds')} s"), flush=True)
        report["releases"][str(outcome.release)] = told
        asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
