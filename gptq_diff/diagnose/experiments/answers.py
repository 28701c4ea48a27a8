"""Judging what a kernel gave in experiments: every repeat of every call against the exact answer for its own input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.products import CallProducts, call_input, kept_rows
from gptq_diff.compare.judge import CapturedCall, Weight, judge_layer
from gptq_diff.diagnose.experiments.base import Answer, Subject
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Judgement

MOST_VALUES = 2**25
"""Values of x or y that are judged at a time: 128 MB in float32."""


def answers_of(
    subject: Subject, weight: Weight, calls: Sequence[LinearCall], products: Mapping[str, CallProducts]
) -> dict[str, Answer]:
    """By name; repeats with the same bits are judged once. Calls that the products lack are left out."""
    made = [call for call in calls if call.name in products]
    distinct = {call.name: _distinct(products[call.name].y_RMN) for call in made}
    open_ = [(call, products[call.name], which) for call in made for which in sorted(set(distinct[call.name]))]
    judged: dict[tuple[str, int], Judgement] = {}
    for batch in _batches(subject, open_):
        captured = [_as_captured(subject, call, product, which, i) for i, (call, product, which) in enumerate(batch)]
        for (call, _, which), judgement in zip(batch, judge_layer(weight, captured)):
            judged[call.name, which] = judgement
    return {
        call.name: Answer(
            call, products[call.name].y_RMN, products[call.name].path,
            tuple(judged[call.name, which] for which in distinct[call.name]),
        )
        for call in made
    }  # fmt: skip


def _distinct(y_RMN: torch.Tensor) -> list[int]:
    """For every repeat the first one with its bits."""
    found: list[int] = []
    for r in range(y_RMN.shape[0]):
        found.append(next((f for f in sorted(set(found)) if same_bits(y_RMN[f], y_RMN[r])), r))
    return found


def _as_captured(subject: Subject, call: LinearCall, product: CallProducts, which: int, index: int) -> CapturedCall:
    x_MK = call_input(subject.x_MK, call)[list(kept_rows(call))]
    return CapturedCall(0, index, product.path, x_MK, product.y_RMN[which], None)


Open = tuple[LinearCall, CallProducts, int]


def _batches(subject: Subject, open_: Sequence[Open]) -> Iterator[list[Open]]:
    """So many at a time as memory allows."""
    batch: list[Open] = []
    values = 0
    for entry in open_:
        product = entry[1]
        needed = product.y_RMN.shape[1] * max(product.y_RMN.shape[2], subject.x_MK.shape[1])
        if batch and values + needed > MOST_VALUES:
            yield batch
            batch, values = [], 0
        batch.append(entry)
        values += needed
    if batch:
        yield batch
