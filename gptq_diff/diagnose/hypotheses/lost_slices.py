"""Products of some rows of K that never reached the output: a race between the blocks that add up one output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts, Source


@hypothesis
def lost_slices(_source: Source) -> Iterator[Variant]:
    """Blocks of a kernel that adds to an output which another block zeroes too late (vllm-project/vllm#30719)."""

    def lost(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(codes_KC=torch.zeros_like(parts.codes_KC), zeros_GC=torch.zeros_like(parts.zeros_GC))

    def twice(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(scales_GC=parts.scales_GC * 2.0)

    yield Variant("slices", "race-or-uninitialised", "slices of K had been left out", lost, scope="slices")
    yield Variant("slices", "race-or-uninitialised", "slices of K had been added twice", twice, scope="slices")
