"""The prompt of these measurements, and small things that every part needs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from gptq_diff.engines.base import LoadSpec

ROWS = 37
LINEARS = 7
"""A block."""


def token_ids(rows: int, vocabulary: int) -> tuple[int, ...]:
    """That many ids over the whole vocabulary, the first as a real Qwen prompt has it where there is room for it."""
    first = 151644 if vocabulary > 151644 else vocabulary - 2
    return (first, *((7919 * i) % (vocabulary - 10) for i in range(1, rows)))


def vocabulary_of(model: Path) -> int:
    """Rows of the model's embedding."""
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def load_spec(
    engine: str, model: Path, dtype: str, device: str, rows: int, route: str = "", ranks: int = 1
) -> LoadSpec:
    """What `gptq-diff run` gives that engine for a prompt of so many rows."""
    return LoadSpec(
        engine, model.absolute(), dtype, device, trust_remote_code=False, threads=0, seed=0, route=route,
        longest=rows + 8, tensor_parallel=ranks,
    )  # fmt: skip


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Found:
    """What a part has found so far, on disk after every addition: a part that is cut off leaves what it had."""

    def __init__(self, place: Path, **first: Any) -> None:
        self._place = place
        self._started = time.perf_counter()
        self.values: dict[str, Any] = dict(first)
        place.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **values: Any) -> None:
        """Add, write, and say so with the time."""
        self.values.update(values)
        self._place.write_text(json.dumps(self.values, indent=1, default=str) + "\n")
        said = json.dumps({k: v for k, v in values.items() if k != "times"}, default=str)
        print(f"[{time.strftime('%H:%M:%S')} +{time.perf_counter() - self._started:.1f}s] {said[:1500]}", flush=True)
