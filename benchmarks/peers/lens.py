"""vllm-lens on one prefill, under an interpreter with vLLM: `python lens.py names|cost TOOL MODEL OUT` prints JSON.

As benchmarks.peers.tool, on vLLM's engine: the residual stream after every block, which is what vllm-lens captures, and
written by safetensors. names: two infinite values are planted in what block 11's down_proj returns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tool import IDS, ROUNDS, private_bytes, size_of  # beside this file: gptq-diff is not installed here

BLOCKS, FAULTY_BLOCK = 30, 11


class Lens:
    """One engine of vLLM with the plugin that vllm-lens registers by itself."""

    def __init__(self, model: Path, out: Path) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM

        self.out = out
        self.llm = LLM(
            model=str(model), dtype="float32", enforce_eager=True, max_model_len=256, enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )  # fmt: skip

    def forward(self, layers: list[int] | None = None) -> Any:
        """The prefill; with layers, their residual streams."""
        from vllm import SamplingParams

        extra = None if layers is None else {"output_residual_stream": layers}
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False, extra_args=extra)
        return self.llm.generate({"prompt_token_ids": list(IDS)}, sampling, use_tqdm=False)[0]

    def once(self) -> torch.Tensor:
        """[blocks, tokens, hidden], written as well."""
        from safetensors.torch import save_file

        streams: torch.Tensor = self.forward(list(range(BLOCKS))).activations["residual_stream"]
        assert streams.shape[:2] == (BLOCKS, len(IDS)), streams.shape
        self.out.mkdir(exist_ok=True)
        save_file({"residual_stream": streams.contiguous()}, str(self.out / "kept.safetensors"))
        return streams


def plant(model: Any) -> None:
    """Two infinite values in what that linear returns."""
    linear = model.model.layers[FAULTY_BLOCK].mlp.down_proj
    forward = linear.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        y = output[0] if isinstance(output, tuple) else output
        if y.shape[0] == len(IDS):
            y.view(-1)[3], y.view(-1)[700] = float("inf"), float("inf")
        return output

    linear.forward = broken


def names(lens: Lens) -> dict[str, Any]:
    """The first block whose stream is not finite, which somebody has to look for."""
    lens.llm.apply_model(plant)
    odd = [i for i, stream in enumerate(lens.once()) if not torch.isfinite(stream).all()]
    return {"names": f"block {odd[0]}, if its streams are searched for inf" if odd else "nothing"}


def cost(lens: Lens) -> dict[str, Any]:
    """Ratio, memory, bytes."""
    lens.forward()
    before = private_bytes()
    ratios, peak = [], before
    for number in range(ROUNDS + 1):
        started = time.perf_counter()
        lens.forward()
        between = time.perf_counter()
        shutil.rmtree(lens.out, ignore_errors=True)
        again = time.perf_counter()
        lens.once()
        ended = time.perf_counter()
        peak = max(peak, private_bytes())
        if number:
            ratios.append((ended - again) / (between - started))
    return {
        "tool": "vllm-lens: residual streams of 30 blocks, on vLLM",
        "versions": f"vllm-lens {version('vllm-lens')}, vllm-cpu {version('vllm-cpu')}",
        "ratio": statistics.median(ratios), "added_bytes": peak - before, "written_bytes": size_of(lens.out),
        "compare_seconds": None, "compared_bytes": 0,
    }  # fmt: skip


if __name__ == "__main__":
    place = Path(sys.argv[4]) / ("broken" if sys.argv[1] == "names" else "healthy")
    found = {"names": names, "cost": cost}[sys.argv[1]](Lens(Path(sys.argv[3]), place))
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # vLLM has more to say on its way out
