"""Codes of a 32-bit word taken in another order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.checkpoint.packing import codes_per_period
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts, Source

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
"""Order of the 4-bit codes in a word of AutoAWQ's checkpoints
(https://github.com/casper-hansen/AutoAWQ/blob/v0.2.7/awq/utils/packing_utils.py)."""


def orders(bits: int) -> dict[str, tuple[int, ...]]:
    """Named orders of the codes of a period, other than the right one."""
    period = codes_per_period(bits)
    straight = tuple(range(period))
    found = {"from the last to the first": straight[::-1]}
    if bits == 4:
        found["with the two of every byte exchanged"] = tuple(i ^ 1 for i in straight)
        found["in AWQ's order"] = AWQ
        found["in the inverse of AWQ's order"] = tuple(AWQ.index(i) for i in straight)
    if bits in (2, 4):
        per_byte = 8 // bits
        found["with the bytes from the last to the first"] = tuple(
            (period // per_byte - 1 - i // per_byte) * per_byte + i % per_byte for i in straight
        )
    return found


def _along_rows(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return values.reshape(-1, len(order), values.shape[1])[:, list(order)].reshape(values.shape)


@hypothesis
def nibble_order(source: Source) -> Iterator[Variant]:
    """In qweight, along K; and in qzeros, along N, where zero points are not all alike."""
    for how, order in orders(source.spec.bits).items():

        def reordered(parts: Parts, _columns: torch.Tensor, order: tuple[int, ...] = order) -> Parts:
            return parts.with_(codes_KC=_along_rows(parts.codes_KC, order))

        says = f"the codes of every word of qweight were taken {how}"
        yield Variant("nibbles", "nibble-order", says, reordered, scope="groups")
    zeros_GN = source.own.zeros
    if bool((zeros_GN == zeros_GN[0, 0]).all()):
        return
    for how, order in orders(source.spec.bits).items():
        if source.spec.out_features % len(order):
            continue
        wrong_GN = _along_rows(zeros_GN.T.contiguous(), order).T.contiguous()

        def zeros_reordered(parts: Parts, columns: torch.Tensor, wrong: torch.Tensor = wrong_GN) -> Parts:
            return parts.with_(zeros_GC=wrong[:, columns])

        says = f"the zero points of every word of qzeros were taken {how}"
        yield Variant("zero-nibbles", "nibble-order", says, zeros_reordered, scope="groups")
