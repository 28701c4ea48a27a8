"""A healthy capture's intervals several blocks at a time: of short prompts, calls would cost more than the sums.

What comes out is what `follow` finds interval by interval, as long as every value is finite and every interval within
its threshold. Where one is not, nothing is said here, and `follow` looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.attention import MOST_ROWS, attention, queries
from gptq_diff.diagnose.between.computed import Computed, shares
from gptq_diff.diagnose.between.judged import Place, judgement
from gptq_diff.diagnose.between.norms import Added, add, rms_norm
from gptq_diff.diagnose.between.rotary import turns
from gptq_diff.diagnose.between.source import Source, norms_of
from gptq_diff.records import Judgement

TOGETHER = 2**18
"""Elements that are recomputed at a time: what stays in a core's cache."""


def healthy_blocks(source: Source, index: Callable[[str], int]) -> tuple[list[Judgement], Added] | None:
    """All judgements up to the last norm, and the last residual addition; None where anything is wrong.

    Missing where the capture does not hold what is needed. Long prompts are left to `follow` too.
    """
    shape, rows = source.shape, source.sequence.rows
    if rows > MOST_ROWS:
        return None
    found: list[Judgement] = []
    widest = max(source.output("model.layers.0.mlp.gate_proj").shape[1], shape.hidden, shape.heads * rows)
    together = max(TOGETHER // (rows * widest), 1)
    stream = source.embedding()
    added = Added(stream, stream, stream, "")
    for first in range(0, shape.blocks, together):
        blocks = range(first, min(first + together, shape.blocks))
        added, judged = _norms(source, blocks, added, index)
        for computed in (judged, _attention(source, blocks, index), _activation(source, blocks, index)):
            if computed is None:
                return None
            found += computed
    last = add(added.total, source.output(f"model.layers.{shape.blocks - 1}.mlp.down_proj"), "")
    found.sort(key=lambda j: (j.index, j.step))
    return found, replace(last, layer=f"model.layers.{shape.blocks - 1}.mlp.down_proj")


def _norms(
    source: Source, blocks: range, added: Added, index: Callable[[str], int]
) -> tuple[Added, list[Judgement] | None]:
    """Both norms of every block; the addition before the last of them."""
    norms = norms_of(source.shape)[2 * blocks.start : 2 * blocks.stop]
    streams = []
    for norm in norms:
        if norm.adds:
            added = add(added.total, source.output(norm.adds), norm.adds)
        streams.append(added.total)
    weight = torch.stack([source.weight(norm.weight) for norm in norms])[:, None, :]
    computed = rms_norm(torch.stack(streams), weight, source.shape.eps, source.precision)
    places = [Place("norm", norm.feeds, index(norm.feeds)) for norm in norms]
    return added, _judged(source, places, computed)


def _attention(source: Source, blocks: range, index: Callable[[str], int]) -> list[Judgement] | None:
    shape, rows = source.shape, source.sequence.rows
    at = [f"model.layers.{block}.self_attn" for block in blocks]
    q, k, v = (torch.cat([source.output(f"{a}.{name}_proj") for a in at], dim=1) for name in "qkv")
    wider = replace(shape, heads=shape.heads * len(blocks), kv_heads=shape.kv_heads * len(blocks))
    turn = turns(shape, rows, source.precision.wide)
    computed = attention(q, k, v, wider, source.precision, queries(rows), turn=turn)
    apart = replace(
        computed, exact_TN=_by_block(computed.exact_TN, len(blocks)),
        variance_TN=_by_block(computed.variance_TN, len(blocks)), ok_T=computed.ok_T.repeat(len(blocks)),
        mixed_T=computed.mixed_T.repeat(len(blocks)),
    )  # fmt: skip
    return _judged(source, [Place("attention", f"{a}.o_proj", index(f"{a}.o_proj")) for a in at], apart)


def _by_block(t_TN: torch.Tensor, blocks: int) -> torch.Tensor:
    """[blocks * T, N]: blocks that lie side by side, below each other."""
    return t_TN.reshape(t_TN.shape[0], blocks, -1).transpose(0, 1).flatten(0, 1)


def _activation(source: Source, blocks: range, index: Callable[[str], int]) -> list[Judgement] | None:
    at = [f"model.layers.{block}.mlp" for block in blocks]
    gate, up = (torch.cat([source.output(f"{a}.{name}_proj") for a in at]) for name in ("gate", "up"))
    computed = gated(gate, up, KNOWN[source.shape.activation], source.precision)
    return _judged(source, [Place("activation", f"{a}.down_proj", index(f"{a}.down_proj")) for a in at], computed)


def _judged(source: Source, places: Sequence[Place], computed: Computed) -> list[Judgement] | None:
    """Every place and step, whose rows lie below each other; None where one is not as it should be."""
    if not bool(computed.ok_T.all()):
        return None
    captured = torch.cat([source.sequence.input(place.layer) for place in places])
    rows, steps = source.sequence.rows, source.sequence.spans
    spans = [slice(i * rows + s.start, i * rows + s.stop) for i in range(len(places)) for s in steps]
    found = []
    for n, (span, s) in enumerate(zip(spans, shares(computed, captured, spans, source.precision))):
        place, step = places[n // len(steps)], n % len(steps)
        j = judgement(place, step, span.stop - span.start, captured.shape[1], computed.input_absmax, s)
        if j.kind != "ok":
            return None
        found.append(j)
    return found
