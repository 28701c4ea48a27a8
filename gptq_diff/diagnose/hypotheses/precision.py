"""bfloat16 where float16 was meant: scales, weights, the input or the result."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts, Source


def brain(values: torch.Tensor) -> torch.Tensor:
    """float32, rounded to bfloat16."""
    return values.to(torch.bfloat16).float()


@hypothesis
def bfloat16(_source: Source) -> Iterator[Variant]:
    """Rounded once to 8 significant bits; y itself is told by its bits (gptq_diff.diagnose.output_values)."""

    def scales(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(scales_GC=brain(parts.scales_GC))

    def weights(parts: Parts, _columns: torch.Tensor) -> Parts:
        # codes 0 or 1, a scale a row: the rounded weight as it is
        rows = torch.arange(len(parts.codes_KC))
        return parts.with_(
            codes_KC=torch.ones_like(parts.codes_KC), zeros_GC=torch.zeros_like(parts.codes_KC),
            scales_GC=brain(parts.weight()), group_K=rows,
        )  # fmt: skip

    yield Variant("bfloat16", "dtype", "scales were rounded to bfloat16", scales)
    yield Variant("bfloat16", "dtype", "weights were rounded to bfloat16", weights)


@hypothesis
def bfloat16_input(_source: Source) -> Iterator[Variant]:
    """The input rounded to 8 significant bits before the product."""

    def inputs(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(x_MK=brain(parts.x_MK))

    yield Variant("bfloat16-input", "dtype", "the input was rounded to bfloat16", inputs, in_columns=False)
