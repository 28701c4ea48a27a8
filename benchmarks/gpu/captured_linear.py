"""One linear of a finished run, to carry to a GPU: its captured x and its packed weight, in one small file.

python -m benchmarks.gpu.captured_linear --run RUN --backend hf-fp16 --prompt short --layer LAYER --out FILE.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptq_diff.capture.store import CaptureReader
from gptq_diff.checkpoint.reader import open_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--backend", "--prompt", "--layer"):
        parser.add_argument(name, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(Path(json.loads((asked.run / "run.json").read_text())["model"]["path"]))
    x_MK = CaptureReader(asked.run / "captures" / asked.backend / asked.prompt).tensor(0, asked.layer, "in")
    linear = checkpoint.packed(asked.layer)
    kept = {"x": x_MK.to(torch.float16), **{name: getattr(linear, name) for name in ("qweight", "qzeros", "scales")}}
    save_file({name: tensor.contiguous().clone() for name, tensor in kept.items()}, asked.out)
    print({name: list(tensor.shape) for name, tensor in kept.items()}, "largest x", float(x_MK.abs().max()))


if __name__ == "__main__":
    main()
