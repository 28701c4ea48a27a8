"""Columns that belong to another linear of a fused product, or to another rank's shard."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts, Source

RANKS = (2, 4, 8)


def _from_fused(source: Source, map_N: torch.Tensor) -> Variant:
    """The variant in which column n of this linear is column map_N[n] of the fused product."""

    def taken(parts: Parts, columns: torch.Tensor) -> Parts | None:
        return source.fused_parts(parts, map_N[columns])

    return Variant("shards", "shard-order", "", taken, in_columns=False)


def _interleaved(sizes: list[int], ranks: int) -> torch.Tensor:
    """The fused columns in the order q0 k0 v0 q1 k1 v1 of that many ranks."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    pieces = [
        torch.arange(start + rank * size // ranks, start + (rank + 1) * size // ranks)
        for rank in range(ranks)
        for start, size in zip(starts, sizes)
    ]
    return torch.cat(pieces)


@hypothesis
def fused_order(case: Case) -> Iterator[Variant]:
    """q, k, v (or gate, up) laid out in another order than read, also rank by rank (q0 k0 v0 q1 k1 v1)."""
    source = case.source
    sizes = [u.spec.out_features for u in source.fused]
    if len(sizes) < 2:
        return
    names = [u.spec.name.rpartition(".")[2].removesuffix("_proj") for u in source.fused]
    first, own = source.first_column, source.spec.out_features
    whole = torch.arange(sum(sizes))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for order in itertools.permutations(range(len(sizes))):
        laid = torch.cat([whole[starts[i] : starts[i] + sizes[i]] for i in order])
        read = laid[first : first + own]
        if not torch.equal(read, whole[first : first + own]):
            said = f"{', '.join(names)} were read where {', '.join(names[i] for i in order)} lie"
            yield _named(_from_fused(source, read), said)
    for ranks in RANKS:
        if any(size % ranks for size in sizes):
            continue
        laid = _interleaved(sizes, ranks)
        read = laid[first : first + own]
        said = f"{ranks} ranks' shards of {', '.join(names)} lay rank by rank and were read linear by linear"
        yield _named(_from_fused(source, read), said)
        inverse = torch.argsort(laid)
        said = f"{ranks} ranks' shards of {', '.join(names)} lay linear by linear and were read rank by rank"
        yield _named(_from_fused(source, inverse[first : first + own]), said)


@hypothesis
def rank_shards(case: Case) -> Iterator[Variant]:
    """The linear's own columns, or its rows, in shards that changed places."""
    source = case.source
    spec = source.spec
    for ranks in RANKS:
        if spec.out_features % ranks == 0:
            size = spec.out_features // ranks
            for said, order in _exchanges(ranks):
                map_N = _in_order(order, size) + source.first_column
                yield _named(_from_fused(source, map_N), f"of {ranks} shards of its columns {said}")
        if spec.in_features % ranks == 0:
            size = spec.in_features // ranks
            for said, order in _exchanges(ranks):
                where_K = _in_order(order, size)

                def moved(parts: Parts, _columns: torch.Tensor, map_K: torch.Tensor = where_K) -> Parts:
                    return parts.with_(x_MK=parts.x_MK[:, map_K])

                said = f"of {ranks} shards of its rows of W {said}, and those of x had not"
                yield Variant("shards", "shard-order", said, moved, in_columns=False, on_dense=True)


def _exchanges(ranks: int) -> Iterator[tuple[str, list[int]]]:
    """Orders of the shards: two neighbours exchanged, or all moved on by one, either way."""
    for first in range(ranks - 1):
        order = list(range(ranks))
        order[first : first + 2] = [first + 1, first]
        yield f"{first} and {first + 1} had changed places", order
    if ranks > 2:
        yield "all had moved on by one", [(i - 1) % ranks for i in range(ranks)]
        yield "all had moved back by one", [(i + 1) % ranks for i in range(ranks)]


def _in_order(order: list[int], size: int) -> torch.Tensor:
    """int64: the places of the shards' elements in that order."""
    return torch.cat([torch.arange(shard * size, (shard + 1) * size) for shard in order])


def _named(variant: Variant, says: str) -> Variant:
    return Variant(variant.family, variant.cause, says, variant.change, in_columns=False)
