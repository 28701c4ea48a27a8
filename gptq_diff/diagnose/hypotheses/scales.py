"""Scales taken from another group: the neighbour's, or groups of another size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


def _rolled(by: int, parts: Parts, _columns: torch.Tensor, *, zeros: bool) -> Parts:
    scales_GC = parts.scales_GC.roll(by, 0)
    return parts.with_(scales_GC=scales_GC, zeros_GC=parts.zeros_GC.roll(by, 0) if zeros else parts.zeros_GC)


def _longer(parts: Parts, _columns: torch.Tensor, *, zeros: bool) -> Parts:
    """Row k's group is the half of what it should be; of the scales alone, or of the zero points too."""
    half_G = torch.arange(len(parts.scales_GC)) // 2
    zeros_GC = parts.zeros_GC[half_G] if zeros else parts.zeros_GC
    return parts.with_(scales_GC=parts.scales_GC[half_G], zeros_GC=zeros_GC)


def _shorter(group_size: int, parts: Parts, _columns: torch.Tensor) -> Parts:
    rows = torch.arange(len(parts.group_K))
    return parts.with_(group_K=(rows // group_size).clamp_max(len(parts.scales_GC) - 1))


@hypothesis
def scales_of_another_group(case: Case) -> Iterator[Variant]:
    """Shifted by one either way, pairs exchanged, or groups taken for twice or half as long."""
    source = case.source
    groups, spec = source.spec.groups, source.spec
    if groups < 2:
        return
    for by, which in ((1, "before"), (-1, "after")):
        says = f"scales were those of the group {which}"
        yield Variant("scale-group", "scale-group", says, partial(_rolled, by, zeros=False), scope="groups")
    if not spec.sym:
        for by, which in ((1, "before"), (-1, "after")):
            says = f"scales and zero points were those of the group {which}"
            yield Variant("scale-group", "scale-group", says, partial(_rolled, by, zeros=True), scope="groups")
    says = f"groups were of {2 * spec.group_size} rows, not of {spec.group_size}"
    yield Variant("group-size", "scale-group", says, partial(_longer, zeros=True), in_columns=False)
    if not spec.sym:
        yield Variant("group-size", "scale-group", f"{says}, for the scales", partial(_longer, zeros=False))
    if not spec.desc_act and spec.group_size > 1:
        size = spec.group_size // 2
        says = f"groups were of {size} rows, not of {spec.group_size}"
        yield Variant("group-size", "scale-group", says, partial(_shorter, size), in_columns=False)


@hypothesis
def scales_of_any_group(case: Case) -> Iterator[Variant]:
    """The scales of one group used in another, whichever: exchanged rows of `scales`."""
    source = case.source
    groups = source.spec.groups
    if not 2 < groups <= 64:
        return
    for other in range(2, groups - 1):

        def from_afar(parts: Parts, _columns: torch.Tensor, other: int = other) -> Parts:
            return parts.with_(scales_GC=parts.scales_GC.roll(other, 0))

        says = "scales were those of another group"
        yield Variant("any-group", "scale-group", says, from_afar, scope="groups")
