"""Single linears on vLLM's live kernels, held against what the engine gave.

python -m benchmarks.gpu.replay --run RUN --out FILE

RUN is a finished `gptq-diff run --capture full` with vLLM's presets. Every linear of every prefill is multiplied once
more from its captured x and the checkpoint's packed weight, outside the engine, and held against the captured y.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from gptq_diff.capture.store import CaptureReader
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.vllm_machete import VllmMachete
from gptq_diff.kernels.vllm_ops import VllmGemm, VllmMarlin

KERNELS: dict[str, Any] = {
    "exllama-fast": lambda: VllmGemm("exllama-fast"),
    "exllama-reconstruct": lambda: VllmGemm("exllama-reconstruct"),
    "marlin": VllmMarlin,
    "machete": VllmMachete,
}


def compare(reader: CaptureReader, kernels: dict[str, Kernel], checkpoint: Any, found: dict[str, Any]) -> None:
    """Add one capture's prefill to the counts, by path."""
    for layer in reader.manifest.order:
        path = reader.manifest.kernels[layer]
        if path not in KERNELS:
            continue
        if path not in kernels:
            kernels[path] = KERNELS[path]()
        y_MN = reader.tensor(0, layer, "out")
        ours_MN = kernels[path].multiply(reader.tensor(0, layer, "in"), checkpoint.packed(layer)).y_MN.cpu()
        counts = found.setdefault(
            path, {"linears": 0, "values": 0, "differing": 0, "nonfinite_differs": 0, "worst_l2_rel": 0.0}
        )
        both = torch.isfinite(y_MN) & torch.isfinite(ours_MN)
        a, b = y_MN[both].double(), ours_MN[both].double()
        counts["linears"] += 1
        counts["values"] += y_MN.numel()
        counts["differing"] += int((y_MN.view(torch.int16) != ours_MN.view(torch.int16)).sum())
        counts["nonfinite_differs"] += int((torch.isfinite(y_MN) != torch.isfinite(ours_MN)).sum())
        counts["worst_l2_rel"] = max(counts["worst_l2_rel"], float((a - b).norm() / a.norm().clamp_min(1e-30)))


def attempt(capture: Path, kernels: dict[str, Kernel], checkpoint: Any, found: dict[str, Any]) -> list[str]:
    """compare; what cannot be replayed is told in a line."""
    try:
        compare(CaptureReader(capture), kernels, checkpoint, found)
    except BackendError as e:
        return [f"{capture.parent.name} {capture.name}: {e}"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    failed: list[str] = []
    for run in asked.run:
        checkpoint = open_checkpoint(Path(json.loads((run / "run.json").read_text())["model"]["path"]))
        kernels: dict[str, Kernel] = {}
        for capture in sorted((run / "captures").glob("*/*")):
            failed += attempt(capture, kernels, checkpoint, found)
    result = {
        "what": "vLLM's kernels replayed on captured inputs, against the outputs captured in the engine",
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(), "paths": found, "failed": failed,
    }  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
