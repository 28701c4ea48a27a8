"""Products of some rows of K that never reached the output: a race between the blocks that add up one output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


@hypothesis
def lost_slices(_case: Case) -> Iterator[Variant]:
    """Blocks of a kernel that adds to an output which another block zeroes too late (vllm-project/vllm#30719)."""

    def lost(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(codes_KC=parts.zeros_GC[parts.group_K])

    def twice(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(codes_KC=2 * parts.codes_KC - parts.zeros_GC[parts.group_K])

    for says, change in (("left out", lost), ("added twice", twice)):
        says = f"slices of K had been {says}"
        yield Variant("slices", "race-or-uninitialised", says, change, scope="slices", on_dense=True)
