"""bfloat16 where float16 was meant: scales, weights, the input or the result."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


def brain(values: torch.Tensor) -> torch.Tensor:
    """float32, rounded to bfloat16."""
    return values.to(torch.bfloat16).float()


@hypothesis
def bfloat16(_case: Case) -> Iterator[Variant]:
    """Rounded once to 8 significant bits."""

    def scales(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(scales_GC=brain(parts.scales_GC))

    yield Variant("bfloat16", "dtype", "scales were rounded to bfloat16", scales)
    yield Variant("bfloat16", "dtype", "weights were rounded to bfloat16", on_weight=brain, on_dense=True)


@hypothesis
def bfloat16_input(case: Case) -> Iterator[Variant]:
    """The input rounded to 8 significant bits before the product: for all columns, or in some tiles of them."""

    def inputs(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(x_MK=brain(parts.x_MK))

    yield Variant(
        "bfloat16-input", "dtype", "the input was rounded to bfloat16", inputs, in_columns=False, on_dense=True
    )
    if not bool(case.bad.any()) or bool(case.bad.all()):
        return

    def of_columns(y_MC: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return y_MC + (brain(case.x_MK) - case.x_MK) @ case.w_KN[:, columns]

    yield Variant("bfloat16-input", "dtype", "the input was rounded to bfloat16", after=of_columns)
