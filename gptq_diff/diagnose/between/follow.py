"""Follows one capture from the embedding to the logits: every interval between linears recomputed and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.attention import attention, queries
from gptq_diff.diagnose.between.computed import Computed, Lost, Precision, precision_of, shares
from gptq_diff.diagnose.between.judged import Place, judgement, overflown
from gptq_diff.diagnose.between.named import Named
from gptq_diff.diagnose.between.norms import Added, add, rms_norm
from gptq_diff.diagnose.between.rotary import Turn, turns
from gptq_diff.diagnose.between.sequence import Missing, Sequence
from gptq_diff.diagnose.between.why_activation import why_activation
from gptq_diff.diagnose.between.why_attention import Heads, why_attention
from gptq_diff.diagnose.between.why_norm import Site, why_norm
from gptq_diff.records import Judgement

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.diagnose.between.shape import Shape

MOST_WHY = 4
"""Wrong intervals of a capture whose cause is looked for, the output head apart: the first ones matter."""
HEAD = "lm_head"


@dataclass
class Followed:
    """What was found. bad: wrong intervals with their names. skipped: linear or interval -> why it is not judged."""

    judgements: list[Judgement] = field(default_factory=list)
    bad: list[tuple[Judgement, Named]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Norm:
    """A norm: the linear whose input it gives, its weight's name, the linear whose output is added before it."""

    feeds: str
    weight: str
    adds: str


def norms_of(shape: Shape) -> list[_Norm]:
    """Every norm but the last, in order."""
    found, adds = [], ""
    for block in range(shape.blocks):
        at = f"model.layers.{block}"
        found.append(_Norm(f"{at}.self_attn.q_proj", f"{at}.input_layernorm.weight", adds))
        found.append(_Norm(f"{at}.mlp.gate_proj", f"{at}.post_attention_layernorm.weight", f"{at}.self_attn.o_proj"))
        adds = f"{at}.mlp.down_proj"
    return found


class Follower:
    """One capture on its way. checkpoint: the judge's, whose norms, biases and embedding are taken for right."""

    def __init__(self, sequence: Sequence, checkpoint: Checkpoint, shape: Shape, index: Callable[[str], int]) -> None:
        self.found = Followed()
        self.shape = shape
        self.precision: Precision
        self._sequence = sequence
        self._checkpoint = checkpoint
        self.index = index
        self._why = 0
        self._turn: Turn | None = None

    @property
    def prompt_rows(self) -> int:
        """Rows of the prefill."""
        return self._sequence.spans[0].stop

    def follow(self) -> Added | None:
        """Judge everything up to the last norm; the last residual addition, None where the stream was lost."""
        try:
            first = self._sequence.step_input(0, norms_of(self.shape)[0].feeds)
        except Missing as missing:
            self.found.skipped["all"] = missing.reason
            return None
        precision = precision_of(first.dtype)
        if precision is None:
            self.found.skipped["all"] = f"rounding to {first.dtype} is not known here"
            return None
        self.precision = precision
        table = self._checkpoint.tensor("model.embed_tokens.weight")
        stream = table[torch.tensor(self._sequence.token_ids)].to(precision.dtype)
        added: Added | None = Added(stream, stream, stream, "")
        for place, norm in enumerate(norms_of(self.shape)):
            if norm.adds:
                added = self._added(added, norm.adds)
            if added is not None:
                added = self._norm(added, place)
            if norm.feeds.endswith("q_proj"):
                self._guarded(self._attention, norm.feeds.rpartition(".")[0])
            else:
                self._guarded(self._activation, norm.feeds.rpartition(".")[0])
        return self._added(added, f"model.layers.{self.shape.blocks - 1}.mlp.down_proj")

    def _guarded(self, interval: Callable[[str], None], at: str) -> None:
        try:
            interval(at)
        except Missing as missing:
            self.found.skipped[at] = missing.reason

    def _output(self, layer: str) -> torch.Tensor:
        biased = layer.rpartition(".")[2] in self.shape.biased
        return self._sequence.output(layer, self._checkpoint.tensor(f"{layer}.bias") if biased else None)

    def weight(self, name: str) -> torch.Tensor:
        """A norm's weight, rounded as the engine has it, wide."""
        return self._checkpoint.tensor(name).to(self.precision.dtype).to(self.precision.wide)

    def _added(self, before: Added | None, layer: str) -> Added | None:
        if before is None:
            return None
        try:
            return add(before.total, self._output(layer), layer)
        except Missing as missing:
            self.found.skipped[layer] = missing.reason
            return None

    def _norm(self, added: Added, at: int) -> Added:
        """Judge one norm; the addition as the engine has it, where its stream is what is wrong."""
        norm = norms_of(self.shape)[at]
        place = Place("norm", norm.feeds, self.index(norm.feeds))
        self.overflows(added, place)
        weight_H = self.weight(norm.weight)
        computed = rms_norm(added.total, weight_H, self.shape.eps, self.precision)
        stream: list[torch.Tensor] = []

        def why() -> Named:
            captured = self._sequence.input(norm.feeds)
            site = Site(
                added, weight_H, self.shape.eps, captured, self.precision, lambda total: self._agrees(total, at + 1)
            )
            named = why_norm(site)
            if named.stream is not None:
                stream.append(named.stream)
            elif named.lost_T is not None:
                stream.append(torch.where(named.lost_T[:, None], float("nan"), added.total))
            return named

        self._judge(place, computed, why)
        return Added(added.before, added.output, stream[0], added.layer) if stream else added

    def last_norm(self, added: Added, weight_H: torch.Tensor) -> None:
        """The norm before an output head that is a quantised linear itself, of the rows that it is given."""
        place = Place("norm", HEAD, self.index(HEAD))
        for step, span in enumerate(self._sequence.spans):
            captured = self._sequence.step_input(step, HEAD)
            rows = slice(span.stop - len(captured), span.stop)
            computed = rms_norm(added.total[rows], weight_H, self.shape.eps, self.precision)
            (s,) = shares(computed, captured, [slice(0, len(captured))], self.precision)
            found = judgement(place, step, len(captured), captured.shape[1], computed.input_absmax, s)
            self.add([found], lambda: Named("norm"))

    def _agrees(self, stream_TH: torch.Tensor, at: int) -> torch.Tensor | None:
        """The rows, bool [T], in which that norm's captured output is the stream's after the next addition."""
        if at == 2 * self.shape.blocks:
            return None
        norm = norms_of(self.shape)[at]
        total = stream_TH + self._output(norm.adds)
        computed = rms_norm(total, self.weight(norm.weight), self.shape.eps, self.precision)
        error2 = (self._sequence.input(norm.feeds) - computed.exact_TN).square() / computed.variance_TN.clamp_min(1e-37)
        agrees: torch.Tensor = error2.mean(dim=1) <= FACTOR**2
        return agrees

    def overflows(self, added: Added, place: Place) -> None:
        """A sum of finite summands that is beyond the dtype, in any step."""
        gone_TH = added.overflown
        if not added.layer or not bool(gone_TH.any()):
            return
        for step, span in enumerate(self._sequence.spans):
            where = torch.nonzero(gone_TH[span]).tolist()
            if where:
                sums = (added.before[span].double() + added.output[span].double())[gone_TH[span]]
                lost = Lost(0, len(where), (where[0][0], where[0][1]))
                at, (rows, columns) = Place("residual", place.layer, place.index), gone_TH[span].shape
                found = overflown(at, step, rows, columns, lost, float(sums.abs().amax()))
                self.found.judgements.append(found)
                self.found.bad.append((found, Named("residual", f"the output of {added.layer} is added to it")))

    def _attention(self, at: str) -> None:
        seq = self._sequence
        q, k, v = (self._output(f"{at}.{name}") for name in ("q_proj", "k_proj", "v_proj"))
        rows = queries(seq.spans[0].stop)
        rows = torch.cat([rows, torch.arange(seq.spans[0].stop, seq.rows)])
        if self._turn is None:
            self._turn = turns(self.shape, seq.rows, self.precision.wide)
        computed = attention(q, k, v, self.shape, self.precision, rows, turn=self._turn)
        layer = f"{at}.o_proj"
        self._judge(
            Place("attention", layer, self.index(layer)), computed,
            lambda: why_attention(Heads(q, k, v, seq.input(layer), self.shape, self.precision)), rows,
        )  # fmt: skip

    def _activation(self, at: str) -> None:
        gate, up = self._output(f"{at}.gate_proj"), self._output(f"{at}.up_proj")
        own, layer = self.shape.activation, f"{at}.down_proj"
        computed = gated(gate, up, KNOWN[own], self.precision)
        self._judge(
            Place("activation", layer, self.index(layer)), computed,
            lambda: why_activation(gate, up, self._sequence.input(layer), own, self.precision),
        )  # fmt: skip

    def _judge(
        self, place: Place, computed: Computed, why: Callable[[], Named], at: torch.Tensor | None = None
    ) -> None:
        """Every step of one interval. at: the rows that were computed, where not all of the prefill's were."""
        spans, captured = self._captured(place.layer, at)
        found = [
            judgement(place, step, span.stop - span.start, captured.shape[1], computed.input_absmax, s)
            for (step, span), s in zip(enumerate(spans), shares(computed, captured, spans, self.precision))
        ]
        self.add(found, why)

    def _captured(self, layer: str, at: torch.Tensor | None) -> tuple[list[slice], torch.Tensor]:
        """What that linear took, as many rows as were computed, and the rows of each step."""
        spans, captured = self._sequence.spans, self._sequence.input(layer)
        if at is None or len(at) == len(captured):
            return spans, captured
        less = len(captured) - len(at)
        moved = [slice(max(span.start - less, 0), span.stop - less) for span in spans]
        return moved, captured[at]

    def add(self, found: list[Judgement], why: Callable[[], Named]) -> None:
        """Keep judgements of one interval; a wrong one gets its name first."""
        bad = [j for j in found if j.cause is not None]
        if bad:
            named = self._named(bad[0], why)
            for j in found:
                j = _renamed(j, named.name)
                self.found.judgements.append(j)
                if j.cause is not None:
                    self.found.bad.append((j, named))
        else:
            self.found.judgements += found

    def _named(self, first: Judgement, why: Callable[[], Named]) -> Named:
        if first.kind != "diverged" or (self._why >= MOST_WHY and first.path != HEAD):
            return Named(first.path)
        self._why += 1
        try:
            return why()
        except Missing:
            return Named(first.path)


def _renamed(j: Judgement, name: str) -> Judgement:
    return replace(j, path=name, part=name)
