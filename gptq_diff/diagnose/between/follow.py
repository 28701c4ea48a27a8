"""Follows one capture from the embedding to the logits: every interval between linears recomputed and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.attention import MOST_ROWS, attention, queries
from gptq_diff.diagnose.between.blocks import healthy_blocks
from gptq_diff.diagnose.between.computed import Computed, Lost, shares
from gptq_diff.diagnose.between.judged import Place, judgement, overflown
from gptq_diff.diagnose.between.named import Named
from gptq_diff.diagnose.between.norms import Added, add, rms_norm
from gptq_diff.diagnose.between.rotary import Turn, turns
from gptq_diff.diagnose.between.sequence import Missing
from gptq_diff.diagnose.between.source import Source, norms_of
from gptq_diff.diagnose.between.why_activation import why_activation
from gptq_diff.diagnose.between.why_attention import Heads, why_attention
from gptq_diff.diagnose.between.why_norm import Site, why_norm
from gptq_diff.records import Judgement

MOST_WHY = 4
"""Wrong intervals of a capture whose cause is looked for, the output head apart: the first ones matter."""
SCORES, FEWEST_QUERIES = MOST_ROWS**2, 24
"""Scores of one head that are recomputed, and the queries that are judged however many tokens each sees."""
MOST_LOST = 8
"""Rows of a long prompt that are judged because they are not finite."""
HEAD = "lm_head"


@dataclass
class Followed:
    """What was found. bad: wrong intervals with their names. skipped: linear or interval -> why it is not judged."""

    judgements: list[Judgement] = field(default_factory=list)
    bad: list[tuple[Judgement, Named]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class Follower:
    """One capture on its way. index: the place of a linear in the order of execution."""

    def __init__(self, source: Source, index: Callable[[str], int]) -> None:
        self.found = Followed()
        self.source = source
        self.index = index
        self._why = 0
        self._turn: Turn | None = None

    def follow(self) -> Added | None:
        """Judge everything up to the last norm; the last residual addition, None where the stream was lost."""
        try:
            healthy = healthy_blocks(self.source, self.index)
        except Missing:
            healthy = None
        if healthy is not None:
            self.found.judgements += healthy[0]
            return healthy[1]
        shape, stream = self.source.shape, self.source.embedding()
        added: Added | None = Added(stream, stream, stream, "")
        for place, norm in enumerate(norms_of(shape)):
            if norm.adds:
                added = self._added(added, norm.adds)
            if added is not None:
                added = self._normed(added, place)
            if norm.feeds.endswith("q_proj"):
                self._guarded(self._attention, norm.feeds.rpartition(".")[0])
            else:
                self._guarded(self._activation, norm.feeds.rpartition(".")[0])
        return self._added(added, f"model.layers.{shape.blocks - 1}.mlp.down_proj")

    def _guarded(self, interval: Callable[[str], None], at: str) -> None:
        try:
            interval(at)
        except Missing as missing:
            self.found.skipped[at] = missing.reason

    def _added(self, before: Added | None, layer: str) -> Added | None:
        if before is None:
            return None
        try:
            return add(before.total, self.source.output(layer), layer)
        except Missing as missing:
            self.found.skipped[layer] = missing.reason
            return None

    def _normed(self, added: Added, at: int) -> Added:
        try:
            return self._norm(added, at)
        except Missing as missing:
            self.found.skipped[norms_of(self.source.shape)[at].feeds] = missing.reason
            return added

    def _norm(self, added: Added, at: int) -> Added:
        """Judge one norm; the addition as the engine has it, where its stream is what is wrong."""
        norm = norms_of(self.source.shape)[at]
        place = Place("norm", norm.feeds, self.index(norm.feeds))
        self.overflows(added, place)
        weight_H = self.source.weight(norm.weight)
        rows = self._rows(norm.feeds)
        computed = rms_norm(added.total[rows], weight_H, self.source.shape.eps, self.source.precision)
        stream: list[torch.Tensor] = []

        def why() -> Named:
            captured, eps = self.source.sequence.input(norm.feeds), self.source.shape.eps
            named = why_norm(
                Site(added, weight_H, eps, captured, self.source.precision, lambda total: self._agrees(total, at + 1))
            )
            if named.stream is not None:
                stream.append(named.stream)
            elif named.lost_T is not None:
                stream.append(torch.where(named.lost_T[:, None], float("nan"), added.total))
            return named

        self._judge(place, computed, why, rows)
        return Added(added.before, added.output, stream[0], added.layer) if stream else added

    def last_norm(self, added: Added, weight_H: torch.Tensor) -> None:
        """The norm before an output head that is a quantised linear itself, of the rows that it is given."""
        place = Place("norm", HEAD, self.index(HEAD))
        for step, span in enumerate(self.source.sequence.spans):
            captured = self.source.sequence.step_input(step, HEAD)
            rows = slice(span.stop - len(captured), span.stop)
            computed = rms_norm(added.total[rows], weight_H, self.source.shape.eps, self.source.precision)
            (s,) = shares(computed, captured, [slice(0, len(captured))], self.source.precision)
            found = judgement(place, step, len(captured), captured.shape[1], computed.input_absmax, s)
            self.add([found], lambda: Named("norm"))

    def _agrees(self, stream_TH: torch.Tensor, at: int) -> torch.Tensor | None:
        """The rows, bool [T], in which that norm's captured output is the stream's after the next addition."""
        if at == 2 * self.source.shape.blocks:
            return None
        norm = norms_of(self.source.shape)[at]
        total = stream_TH + self.source.output(norm.adds)
        computed = rms_norm(total, self.source.weight(norm.weight), self.source.shape.eps, self.source.precision)
        share2 = (self.source.sequence.input(norm.feeds) - computed.exact_TN).square() / computed.variance_TN
        agrees: torch.Tensor = share2.mean(dim=1) <= FACTOR**2
        return agrees

    def overflows(self, added: Added, place: Place) -> None:
        """A sum of finite summands that is beyond the dtype, in any step."""
        gone_TH = added.overflown
        if not added.layer or not bool(gone_TH.any()):
            return
        for step, span in enumerate(self.source.sequence.spans):
            where = torch.nonzero(gone_TH[span]).tolist()
            if where:
                sums = (added.before[span].double() + added.output[span].double())[gone_TH[span]]
                lost = Lost(0, len(where), (where[0][0], where[0][1]))
                at, (rows, columns) = Place("residual", place.layer, place.index), gone_TH[span].shape
                found = overflown(at, step, rows, columns, lost, float(sums.abs().amax()))
                self.found.judgements.append(found)
                self.found.bad.append((found, Named("residual", f"the output of {added.layer} is added to it")))

    def _attention(self, at: str) -> None:
        seq = self.source.sequence
        q, k, v = (self.source.output(f"{at}.{name}") for name in ("q_proj", "k_proj", "v_proj"))
        layer = f"{at}.o_proj"
        rows = self._rows(layer, min(max(SCORES // seq.rows, FEWEST_QUERIES), MOST_ROWS))
        if self._turn is None:
            self._turn = turns(self.source.shape, seq.rows, self.source.precision.wide)
        computed = attention(q, k, v, self.source.shape, self.source.precision, rows, turn=self._turn)
        self._judge(
            Place("attention", layer, self.index(layer)), computed,
            lambda: why_attention(Heads(q, k, v, seq.input(layer), self.source.shape, self.source.precision)), rows,
        )  # fmt: skip

    def _activation(self, at: str) -> None:
        gate, up = self.source.output(f"{at}.gate_proj"), self.source.output(f"{at}.up_proj")
        own, layer = self.source.shape.activation, f"{at}.down_proj"
        rows = self._rows(layer)
        computed = gated(gate[rows], up[rows], KNOWN[own], self.source.precision)
        self._judge(
            Place("activation", layer, self.index(layer)), computed,
            lambda: why_activation(gate, up, self.source.sequence.input(layer), own, self.source.precision), rows,
        )  # fmt: skip

    def _rows(self, layer: str, most: int = MOST_ROWS) -> torch.Tensor:
        """The rows that are judged: of a long prompt some, evenly spread, and the first that are not finite."""
        seq = self.source.sequence
        prompt = seq.spans[0].stop
        rows = queries(prompt, most)
        if len(rows) < prompt:
            lost = torch.nonzero(~torch.isfinite(seq.input(layer)[:prompt].float().sum(dim=1))).flatten()
            rows = torch.unique(torch.cat([rows, lost[:MOST_LOST]]))
        return torch.cat([rows, torch.arange(prompt, seq.rows)])

    def _judge(self, place: Place, computed: Computed, why: Callable[[], Named], at: torch.Tensor) -> None:
        """Every step of one interval. at: the rows that were computed."""
        captured = self.source.sequence.input(place.layer)
        less = len(captured) - len(at)  # of the prefill
        spans = [slice(max(s.start - less, 0), s.stop - less) for s in self.source.sequence.spans]
        found = []
        for step, s in enumerate(shares(computed, captured[at], spans, self.source.precision)):
            rows = spans[step].stop - spans[step].start
            j = judgement(place, step, rows, captured.shape[1], computed.input_absmax, s)
            found.append(_at_its_row(j, at) if step == 0 and less else j)
        self.add(found, why)

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


def _at_its_row(j: Judgement, at: torch.Tensor) -> Judgement:
    """Rows told by their place in the prompt, where not all of them were judged."""
    row = None if j.worst_row is None else int(at[j.worst_row])
    first = None if j.first_index is None else (int(at[j.first_index[0]]), j.first_index[1])
    return replace(j, worst_row=row, first_index=first)
