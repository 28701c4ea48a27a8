"""Zero points read too high or too low: v1 taken for v2 and the other way round, and those that wrap around."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


def _moved(by: int, parts: Parts, _columns: torch.Tensor) -> Parts:
    return parts.with_(zeros_GC=parts.zeros_GC + by)


@hypothesis
def zero_points(case: Case) -> Iterator[Variant]:
    """One too low is what reading v1 (stored = zero - 1) as v2 does, one too high the other way round."""
    source = case.source
    v1 = source.spec.format == "gptq"
    low = "zero points were one too low" + (", as v1 read as v2 has them" if v1 else "")
    high = "zero points were one too high" + ("" if v1 else ", as v2 read as v1 has them")
    yield Variant("zero-point", "zero-point-shift", low, partial(_moved, -1), scope="groups")
    yield Variant("zero-point", "zero-point-shift", high, partial(_moved, 1), scope="groups")


@hypothesis
def ambiguous_zeros(case: Case) -> Iterator[Variant]:
    """A v1 zero of 2^bits, stored as 2^bits - 1, that wraps to 0 (gptq_diff.checkpoint.zeros)."""
    source = case.source
    top = 1 << source.spec.bits
    if source.spec.format != "gptq" or not bool((source.own.zeros == top).any()):
        return

    def wrapped(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(zeros_GC=torch.where(parts.zeros_GC == top, 0, parts.zeros_GC).to(torch.int16))

    says = f"stored zero points of {top - 1} were read as 0, not as {top}"
    yield Variant("ambiguous-zero", "ambiguous-zero", says, wrapped, scope="groups")
    if 32 % source.spec.bits:
        return
    moved_GN = carried(source.own.zeros - 1, source.spec.bits) - source.own.zeros

    def carrying(parts: Parts, columns: torch.Tensor) -> Parts:
        return parts.with_(zeros_GC=parts.zeros_GC + moved_GN[:, columns])

    says = f"{says}, and one carried to the zero point beside it, as adding 1 to each in a whole word does"
    yield Variant("ambiguous-zero", "ambiguous-zero", says, carrying, scope="groups")


def carried(stored_GN: torch.Tensor, bits: int) -> torch.Tensor:
    """Stored zero points plus one, int16 [G, N], where 1 is added to all of a 32-bit word at once: they carry."""
    digits_GWD = stored_GN.reshape(len(stored_GN), -1, 32 // bits)
    found, carry_GW = [], torch.zeros_like(digits_GWD[..., 0])
    for digit in range(digits_GWD.shape[2]):
        total_GW = digits_GWD[..., digit] + 1 + carry_GW
        found.append(total_GW % (1 << bits))
        carry_GW = total_GW >> bits
    return torch.stack(found, dim=2).flatten(1)
