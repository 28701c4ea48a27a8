"""How far inputs are from the reference's: one pair, or many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from gptq_diff.compare.judge import finite_ratio

Pair = tuple[torch.Tensor, torch.Tensor]
"""An input [M, K] as captured, and the reference's, of the same shape where the two can be compared."""

SHARE = 1 << 25
"""Bytes from which on a further thread is worth it: with less, threads wait for Python's lock more than for memory."""

_Memory = dict[torch.Size, torch.Tensor]


def gap(x_MK: torch.Tensor, reference_x: torch.Tensor, memory: _Memory | None = None) -> float | None:
    """l2_rel of x against the reference's; None where shapes differ or the difference has no size.

    memory: float32 by shape, where the difference is made, pair after pair: fresh pages cost more than the sums.
    """
    if reference_x.shape != x_MK.shape:
        return None
    reference_x = reference_x.to(torch.float32)
    norm = torch.linalg.vector_norm(_difference(x_MK, reference_x, {} if memory is None else memory))
    return finite_ratio(norm.item(), torch.linalg.vector_norm(reference_x).item())


def _difference(x_MK: torch.Tensor, reference_x: torch.Tensor, memory: _Memory) -> torch.Tensor:
    """What x has more than the reference's, in float32, or wider where x is."""
    if x_MK.dtype is torch.float64:
        return x_MK - reference_x
    there = memory.get(x_MK.shape)
    if there is None:
        there = memory[x_MK.shape] = torch.empty(x_MK.shape)
    return there.copy_(x_MK).sub_(reference_x)  # `x - reference` would widen x into fresh memory of its own


def gaps(pairs: Sequence[Pair]) -> list[float | None]:
    """`gap` of each, summed by one thread each: what comes out does not depend on how many threads there are."""
    threads = torch.get_num_threads()
    size = sum(x_MK.nbytes + reference_x.nbytes for x_MK, reference_x in pairs)
    wanted = max(1, min(threads, size // SHARE))
    try:
        torch.set_num_threads(1)
        if wanted == 1:
            return _each(pairs)
        with ThreadPoolExecutor(wanted, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return [found for some in pool.map(_each, _shares(pairs, size / wanted)) for found in some]
    finally:
        torch.set_num_threads(threads)


def _each(pairs: Sequence[Pair]) -> list[float | None]:
    memory: _Memory = {}
    return [gap(x_MK, reference_x, memory) for x_MK, reference_x in pairs]


def _shares(pairs: Sequence[Pair], size: float) -> Iterator[list[Pair]]:
    """About that many bytes each, neighbours together: two threads at the same pages of a file hinder each other."""
    some: list[Pair] = []
    taken, given = 0, 1
    for pair in pairs:
        some.append(pair)
        taken += pair[0].nbytes + pair[1].nbytes
        if taken >= given * size:
            yield some
            some, given = [], given + 1
    if some:
        yield some
