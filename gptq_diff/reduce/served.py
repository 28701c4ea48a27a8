"""The child of a live reduction: `python -m gptq_diff.reduce.served FOLDER KERNEL PARENT` multiplies until told.

Runs under the engine's interpreter, Python 3.9 or newer. Call N comes as FOLDER/call-N.safetensors and its product goes
to FOLDER/product-N.safetensors, both by rename; a call that the kernel refuses gives a product with `refused` alone. A
file `end` in place of a call ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open

from gptq_diff.capture.store import save_tensors
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.records import LayerSpec

POLL_SECONDS = 0.002
ABOUT, REFUSED, PATH, SEEN_ON = "about", "refused", "path", "seen_on"
TENSORS = ("x", "qweight", "qzeros", "scales")
NOTHING = {"y": torch.zeros(0)}
"""safetensors files hold at least one tensor here, so that a refusal looks like a product."""


def linear_of(about: str, tensors: dict[str, torch.Tensor]) -> PackedLinear:
    """The weight of a call's file. about: the fields of its LayerSpec as JSON."""
    return PackedLinear(
        LayerSpec(**json.loads(about)), tensors["qweight"], tensors["qzeros"], tensors["scales"], None, None
    )


def versions() -> dict[str, str]:
    """What the kernel runs on, for the script to say where the fault was seen."""
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for name in ("vllm", "gptqmodel", "auto_gptq"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "unknown"))
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def answer(kernel: Kernel, call: Path, product: Path) -> None:
    """Read one call, multiply, write its product."""
    with safe_open(str(call), framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in TENSORS}
        linear = linear_of((stored.metadata() or {})[ABOUT], tensors)
    try:
        support = kernel.supports(linear.spec)
        if not support.ok:
            raise BackendError(support.reason)
        made = kernel.multiply(tensors["x"], linear)
    except BackendError as e:
        save_tensors(NOTHING, product, {REFUSED: str(e)})
        return
    y_MN = made.y_MN.detach().cpu().contiguous()
    save_tensors({"y": y_MN}, product, {PATH: made.path, SEEN_ON: json.dumps(versions())})


def serve(folder: Path, name: str, parent: int) -> None:
    """Make the kernel, then answer calls as they come, until told to end or the parent has gone.

    A kernel that is not here is said in product-0.
    """
    try:
        kernel = make_kernel(name)
    except BackendError as e:
        save_tensors(NOTHING, folder / "product-0.safetensors", {REFUSED: str(e)})
        return
    save_tensors(NOTHING, folder / "product-0.safetensors", {PATH: "", SEEN_ON: json.dumps(versions())})
    number = 1
    while os.getppid() == parent and not (folder / "end").exists():
        call = folder / f"call-{number}.safetensors"
        if not call.exists():
            time.sleep(POLL_SECONDS)
            continue
        answer(kernel, call, folder / f"product-{number}.safetensors")
        call.unlink()
        number += 1


def main() -> None:
    """As the parent starts it."""
    folder, name, parent = sys.argv[1:]
    serve(Path(folder), name, int(parent))


if __name__ == "__main__":
    main()
