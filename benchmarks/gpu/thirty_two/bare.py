"""An engine without gptq-diff: python -m benchmarks.gpu.thirty_two.bare --engine vllm --model DIR --out FILE.json

The floor of `gptq-diff run`: one process that imports, loads and prefills, with the very arguments that the run gives
its engine. `reference` is our own float32 skeleton without a tap, since nobody else's computes exactly.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def vllm_prefills(asked: argparse.Namespace, found: Any) -> None:
    """vllm.LLM as it is, and three prefills."""
    from benchmarks.gpu.thirty_two.prompt import load_spec, token_ids, vocabulary_of
    from gptq_diff.engines.vllm.settings import engine_arguments, own_process, route_named

    os.environ.update(route_named(asked.route).environment())
    import torch
    import vllm

    spec = load_spec("vllm", asked.model, "float16", "auto", asked.rows, asked.route)
    known = frozenset(field.name for field in dataclasses.fields(vllm.EngineArgs))
    arguments = engine_arguments(spec, known)
    if asked.ranks > 1:
        arguments |= {"tensor_parallel_size": asked.ranks, "distributed_executor_backend": "mp"}
    elif not torch.cuda.is_available():
        arguments |= own_process(known)
    found.add(imported_after=time.perf_counter() - STARTED)
    llm = vllm.LLM(**arguments)
    found.add(loaded_after=time.perf_counter() - STARTED)
    ids = list(token_ids(asked.rows, vocabulary_of(asked.model)))
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
    prefills = []
    for _ in range(3):
        started = time.perf_counter()
        llm.generate({"prompt_token_ids": ids}, sampling, use_tqdm=False)
        prefills.append(time.perf_counter() - started)
    found.add(prefill_seconds=prefills)


def reference_prefills(asked: argparse.Namespace, found: Any) -> None:
    """hf-fp32 on that device, no tap, three prefills."""
    from benchmarks.gpu.thirty_two.prompt import load_spec, token_ids, vocabulary_of
    from gptq_diff.engines.hf import HfEngine

    found.add(imported_after=time.perf_counter() - STARTED)
    engine = HfEngine(load_spec("transformers", asked.model, "float32", asked.device, asked.rows))
    engine.use_kernel("exact")
    found.add(loaded_after=time.perf_counter() - STARTED)
    ids = token_ids(asked.rows, vocabulary_of(asked.model))
    prefills = []
    for _ in range(3):
        started = time.perf_counter()
        engine.generate(ids, max_new_tokens=1, forced=None, tap=None)
        prefills.append(time.perf_counter() - started)
    found.add(prefill_seconds=prefills, kept_bytes=engine.kept_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["vllm", "reference"], required=True)
    parser.add_argument("--route", default="marlin")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=37)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    from benchmarks.gpu.thirty_two.prompt import Found

    found = Found(asked.out, what="one engine by itself; seconds since its process started", engine=asked.engine)
    (vllm_prefills if asked.engine == "vllm" else reference_prefills)(asked, found)
    found.add(first_prefill_done_after=found.values["loaded_after"] + found.values["prefill_seconds"][0])


if __name__ == "__main__":
    main()
