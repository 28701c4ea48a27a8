"""Calls of one linear that need judging once: the same input and the same output, bit for bit, by the same path.

Two simulators of which one is the other up to 50 rows give such calls (`gptq_diff.engines.known`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gptq_diff.capture.bits import same_bits
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.records import Judgement

WORTH = 1 << 26
"""Multiply-adds of a call from which on looking for its like costs less than judging it."""


def first_alike(calls: Sequence[CapturedCall]) -> list[int]:
    """For every call the place of the first that is just like it: its own, where none before it is."""
    found: list[int] = []
    for i, call in enumerate(calls):
        rows, in_features = call.x_MK.shape
        worth = rows * in_features * call.y_MN.shape[1] >= WORTH and call.reference_x is None
        earlier = [j for j in range(i) if found[j] == j] if worth else []
        found.append(next((j for j in earlier if _alike(calls[j], call)), i))
    return found


def as_of(call: CapturedCall, known: Judgement) -> Judgement:
    """The judgement of a call that is just like the one which `known` is of, at its own place."""
    whole = known.inherited_rows == 0
    return replace(
        known, index=call.index, step=call.step, inherited_l2_rel=call.inherited_l2_rel if whole else None
    )  # fmt: skip


def _alike(a: CapturedCall, b: CapturedCall) -> bool:
    same_kind = (a.path, a.part, a.first) == (b.path, b.part, b.first) and a.reference_x is None
    return same_kind and same_bits(a.y_MN, b.y_MN) and same_bits(a.x_MK, b.x_MK)
