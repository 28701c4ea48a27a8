"""The tap under tensor parallelism: python -m benchmarks.gpu.thirty_two.ranks_cost --model DIR --ranks 2 --out FILE

One load; the prefill without anything of ours, with our steps but no tap, and with full tensors on every rank, by
turns. Of a tapped prompt it is told what the prefill takes, what the ranks then take to hand on and write their
tensors, and what it takes to put them together as if one process had computed them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.thirty_two.prompt import Found, load_spec, token_ids, vocabulary_of
from benchmarks.gpu.thirty_two.tap_cost import MODES, Times
from gptq_diff.capture.store import CaptureWriter
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.vllm.rank_calls import BEGIN, END
from gptq_diff.engines.vllm.ranks import Ranks
from gptq_diff.engines.vllm_engine import VllmEngine


class Shared:
    """An engine shared among ranks, and the parts of a tapped prompt one by one."""

    def __init__(self, engine: VllmEngine, ids: tuple[int, ...], place: Path) -> None:
        self.engine = engine
        self.ids = list(ids)
        self.place = place
        assert isinstance(engine._model, Ranks)
        self.ranks = engine._model

    def prefill(self) -> float:
        """LLM.generate."""
        sampling = self.engine._sampling(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        self.engine._llm.generate({"prompt_token_ids": self.ids}, sampling, use_tqdm=False)
        return time.perf_counter() - started

    def followed(self) -> float:
        """With our steps on every rank."""
        self.ranks._ask(BEGIN, None, len(self.ids), None)
        took = self.prefill()
        self.ranks._ask(END)
        return took

    def tapped(self) -> dict[str, float]:
        """With taps on every rank."""
        scratch = self.ranks._scratch
        shutil.rmtree(scratch, ignore_errors=True)
        self.ranks._ask(BEGIN, str(scratch), len(self.ids), None)
        took = {"tensors": self.prefill()}
        started = time.perf_counter()
        told: list[dict[str, Any]] = self.ranks._ask(END)
        took["tensors, written afterwards by the ranks"] = time.perf_counter() - started
        started = time.perf_counter()
        shutil.rmtree(self.place, ignore_errors=True)
        writer = CaptureWriter(self.place)
        with Tap(self.engine.tapped, writer) as tap:
            self.ranks._put_together(told[0]["steps"], len(told), tap)
        writer.close()
        took["tensors, put together afterwards"] = time.perf_counter() - started
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm/gptq-diff-ranks"))
    parser.add_argument("--route", default="marlin", choices=sorted(MODES))
    parser.add_argument("--rows", type=int, default=37)
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    out, model = asked.out.absolute(), asked.model.absolute()
    asked.place.mkdir(parents=True, exist_ok=True)
    os.chdir(asked.place)  # where the ranks keep their tensors until they are put together
    found = Found(out, what="a prefill on several ranks, seconds", rows=asked.rows, ranks=asked.ranks)
    started = time.perf_counter()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else the next line touches CUDA, and forked ranks cannot use it
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = VllmEngine(load_spec("vllm", model, "float16", device, asked.rows, asked.route, asked.ranks))
    engine.use_kernel(MODES[asked.route])
    found.add(load_seconds=round(time.perf_counter() - started, 1), linears=len(engine.tapped))
    shared = Shared(engine, token_ids(asked.rows, vocabulary_of(model)), asked.place / "whole")
    times: Times = {}
    for turn in range(asked.rounds + 2):
        took = {"bare": shared.prefill(), "followed": shared.followed(), **shared.tapped()}
        if turn >= 2:
            for kind, value in took.items():
                times.setdefault(kind, []).append(value)
    seconds = {kind: statistics.median(values) for kind, values in times.items()}
    found.add(seconds=seconds, tensors_of_bare=seconds["tensors"] / seconds["bare"], times=times,
              peak_gpu_bytes=engine.gpu_peak())  # fmt: skip
    shutil.rmtree(asked.place, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)  # vLLM waits for its ranks for a while, some releases for long; they end with this process


if __name__ == "__main__":
    main()
