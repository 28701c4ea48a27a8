"""The real model that the benchmarks run: the demo's, which its first run has built and cached."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift

TOKEN_IDS = (1, *range(100, 136))
"""37 ids, as many as the demo's short prompt."""


def model() -> Path:
    """Its directory."""
    return build_model("smollm2", BuildOptions(gain_shift=GainShift(block=11, group=19, gain=4)))


def engine(dtype: str, kernel: str) -> HfEngine:
    """The model in this process."""
    spec = LoadSpec("transformers", model(), dtype, "cpu", trust_remote_code=False, threads=0, seed=0)
    loaded = HfEngine(spec)
    loaded.use_kernel(kernel)
    return loaded
