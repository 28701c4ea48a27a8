"""Codes of a 32-bit word taken in another order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.checkpoint.packing import codes_per_period
from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


def orders(bits: int) -> dict[str, tuple[int, ...]]:
    """Named orders of the codes of a period, other than the right one.

    AutoAWQ's: https://github.com/casper-hansen/AutoAWQ/blob/v0.2.7/awq/utils/packing_utils.py
    """
    period = codes_per_period(bits)
    straight = tuple(range(period))
    found = {"from the last to the first": straight[::-1]}
    if bits == 3:
        return found  # codes cross the words
    even_first = (*straight[::2], *straight[1::2])
    awq = " (AWQ's order)" if bits == 4 else ""
    found[f"even ones before odd ones{awq}"] = even_first
    found[f"odd and even halves in turn{awq and ' (the inverse of it)'}"] = tuple(even_first.index(i) for i in straight)
    if bits != 8:
        per_byte = 8 // bits
        found["backwards in every byte"] = tuple(
            i // per_byte * per_byte + per_byte - 1 - i % per_byte for i in straight
        )
        found["with the bytes from the last to the first"] = tuple(
            (period // per_byte - 1 - i // per_byte) * per_byte + i % per_byte for i in straight
        )
    return found


def _along_rows(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return values.reshape(-1, len(order), values.shape[1])[:, list(order)].reshape(values.shape)


@hypothesis
def nibble_order(case: Case) -> Iterator[Variant]:
    """In qweight, along K; and in qzeros, along N, where zero points are not all alike.

    A word of qzeros spans columns, so that no single one of them can have it: that would be a zero point off by one.
    """
    source = case.source
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
        yield Variant("zero-nibbles", "nibble-order", says, zeros_reordered, in_columns=False)
