"""The intervals of a whole run: one capture after the other, the output head in one pass for all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.diagnose.between.computed import Computed, Precision, shares
from gptq_diff.diagnose.between.findings import findings
from gptq_diff.diagnose.between.follow import HEAD, Follower
from gptq_diff.diagnose.between.head import Hidden, logits
from gptq_diff.diagnose.between.judged import Place, judgement
from gptq_diff.diagnose.between.norms import Added, rms_norm
from gptq_diff.diagnose.between.sequence import Missing, sequence_of
from gptq_diff.diagnose.between.shape import Shape, shape_of
from gptq_diff.diagnose.between.source import Source
from gptq_diff.diagnose.between.why_head import Head, why_head
from gptq_diff.errors import CheckpointError
from gptq_diff.records import ORIGINAL, Between

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.compare.align import Captured

Key = tuple[str, str]
"""(backend, prompt)."""


@dataclass(frozen=True)
class _Last:
    """A capture whose logits are still to be judged. row: [1, H] each."""

    captured: Captured
    follower: Follower
    row: Added
    hidden: Hidden
    place: Place


class Intervals:
    """The intervals of captures that come some at a time, each followed up to its output head."""

    def __init__(self, judge: Checkpoint) -> None:
        self._judge = judge
        self._shape = shape_of(judge.config)
        self._followers: dict[Key, Follower | str] = {}
        self._last: dict[Key, _Last] = {}

    def follow(
        self, captures: Mapping[Key, Captured], prompts: Mapping[str, tuple[int, ...]],
        go_on: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Judge every capture that holds its tensors; what it took is added to each capture's `seconds`.

        go_on: called before each capture; what it raises ends this. The captures stay open until `judged`.
        """
        for key, captured in captures.items():
            go_on()
            started = time.perf_counter()
            shape = self._shape
            if isinstance(shape, str):
                self._followers[key] = shape
                continue
            follower = self._followers[key] = _follower(captured, prompts[key[1]], self._judge, shape)
            if not isinstance(follower, str):
                pending = _followed(captured, follower, shape)
                if pending is not None:
                    self._last[key] = pending
            captured.seconds += time.perf_counter() - started

    def judged(self, keys: Sequence[Key]) -> dict[Key, Between]:
        """Of all captures that were followed, in that order; their output heads are judged now, in one pass.

        A head's figures have in their last digits which others are in the same pass, and in which order.
        """
        if not isinstance(self._shape, str):
            _judge_heads([self._last[key] for key in keys if key in self._last], self._judge, self._shape)
        return {key: _between(self._followers[key]) for key in keys}


def _between(follower: Follower | str) -> Between:
    if isinstance(follower, str):
        return Between((), (), {"all": follower})
    found = follower.found
    return Between(tuple(found.judgements), findings(found.bad), found.skipped)


def _follower(captured: Captured, prompt: tuple[int, ...], judge: Checkpoint, shape: Shape) -> Follower | str:
    """What follows this capture, or why it cannot."""
    if any(place.path == ORIGINAL for places in captured.places.values() for place in places):
        return "the unquantised model is not judged"
    sequence = sequence_of(captured, prompt)
    if isinstance(sequence, str):
        return sequence
    order = {layer: places[0].index for layer, places in captured.places.items()}
    try:
        return Follower(Source(sequence, judge, shape), lambda layer: order.get(layer, len(order)))
    except Missing as missing:
        return missing.reason


def _followed(captured: Captured, follower: Follower, shape: Shape) -> _Last | None:
    """Everything up to the last norm; then what is needed of the last row for the logits."""
    try:
        added = follower.follow()
        if added is None:
            return None
        place = Place(HEAD, HEAD, follower.index(HEAD))
        follower.overflows(added, place)
        at = slice(follower.source.prompt_rows - 1, follower.source.prompt_rows)
        row = Added(added.before[at], added.output[at], added.total[at], added.layer)
        weight = follower.source.weight("model.norm.weight")
    except CheckpointError as e:
        follower.found.skipped["all"] = str(e)
        return None
    if HEAD in captured.places:
        follower.last_norm(added, weight)
        return None
    hidden = Hidden(rms_norm(row.total, weight, shape.eps, follower.source.precision), follower.source.precision)
    return _Last(captured, follower, row, hidden, place)


def _judge_heads(last: list[_Last], judge: Checkpoint, shape: Shape) -> None:
    names = judge.tensor_names()
    name = "lm_head.weight" if "lm_head.weight" in names else "model.embed_tokens.weight" if shape.tied else ""
    if name not in names:
        for one in last:
            one.follower.found.skipped[HEAD] = "the checkpoint has no weight of the output head"
        return
    weight_VH = judge.tensor(name)
    if not last:
        return
    started = time.perf_counter()
    found = logits([one.hidden for one in last], weight_VH)
    seconds = (time.perf_counter() - started) / len(last)
    for one, computed in zip(last, found):
        _judge_head(one, computed, weight_VH, shape, one.hidden.precision)
        one.captured.seconds += seconds


def _judge_head(one: _Last, computed: Computed, weight_VH: torch.Tensor, shape: Shape, precision: Precision) -> None:
    captured_V = one.captured.reader.first_logits()
    if captured_V.shape != computed.exact_TN[0].shape:
        one.follower.found.skipped[HEAD] = f"{len(captured_V)} logits, and the head has {weight_VH.shape[0]} rows"
        return
    (s,) = shares(computed, captured_V[None], [slice(0, 1)], precision)
    head = Head(
        one.row, one.follower.source.weight("model.norm.weight"), shape.eps, weight_VH, precision, computed, captured_V
    )
    one.follower.add(
        [judgement(one.place, 0, 1, len(captured_V), computed.input_absmax, s)], lambda: why_head(head)
    )  # fmt: skip
