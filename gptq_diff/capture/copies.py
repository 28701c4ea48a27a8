"""Copies of many kernel calls on a GPU, and their largest values, in as few launches as it goes.

A launch costs the engine more than the arithmetic in it: about 10 microseconds of its process's time, against less
than one for the copy of a short prompt's activations. So a call's x and y are copied by one launch, and the figures of
a step are found together, one reduction for all calls of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Copied(NamedTuple):
    """One kernel call's input and output, as they were right after it (a tuple: a dataclass takes longer to make).

    flat: the values of x row by row, then those of y. rows: M. inner: K, or 0 where x is not in it. widths: columns of
    each linear whose output lies in y, side by side. out_rows: rows of y; as many as of x for a kernel's product, fewer
    for a step after it.
    """

    flat: torch.Tensor
    rows: int
    inner: int
    widths: tuple[int, ...]
    out_rows: int

    def x_copy(self) -> torch.Tensor:
        """The input, a view of the copy."""
        return self.flat[: self.rows * self.inner].view(self.rows, self.inner)

    def y_parts(self) -> list[torch.Tensor]:
        """The output of each linear [M, N], contiguous."""
        y_MN = self.flat[self.rows * self.inner :].view(self.out_rows, sum(self.widths))
        return [part.contiguous() for part in torch.split(y_MN, list(self.widths), dim=1)]


class Largest(NamedTuple):
    """Largest absolute values, NaN where there is one; 0 for no values. x: None where the copy holds none."""

    x: float | None
    y: tuple[float, ...]


def copied(x_MK: torch.Tensor | None, y_MN: torch.Tensor) -> torch.Tensor:
    """One launch: x and y, of one dtype and device, one after the other in new memory; or y alone."""
    if x_MK is None:
        return y_MN.clone(memory_format=torch.contiguous_format).reshape(-1)
    return torch.cat((x_MK.reshape(-1), y_MN.reshape(-1)))


def largest_values(copies: Sequence[Copied]) -> list[Largest]:
    """Of every copy, in their order; waits for the GPU once."""
    groups: dict[tuple[int, int, tuple[int, ...], int, torch.dtype], list[int]] = {}
    for place, copy in enumerate(copies):
        groups.setdefault((copy.rows, copy.inner, copy.widths, copy.out_rows, copy.flat.dtype), []).append(place)
    asked: list[torch.Tensor] = []
    for (rows, inner, widths, out_rows, _), places in groups.items():
        asked += _by_call(_beside([copies[place].flat for place in places]), (rows, inner), widths, out_rows)
    if not asked:
        return []
    found = iter(torch.cat(asked).tolist())
    told: dict[int, Largest] = {}
    for (_, inner, widths, _, _), places in groups.items():
        x = [next(found) for _ in places] if inner else [None] * len(places)
        y = [[next(found) for _ in places] for _ in widths]
        told.update((place, Largest(x[i], tuple(part[i] for part in y))) for i, place in enumerate(places))
    return [told[place] for place in range(len(copies))]


def _beside(flats: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, values]: one copy is looked at where it lies."""
    return torch.stack(tuple(flats)) if len(flats) > 1 else flats[0].unsqueeze(0)


def _by_call(
    values_BV: torch.Tensor, x_shape: tuple[int, int], widths: tuple[int, ...], out_rows: int
) -> list[torch.Tensor]:
    """Largest absolute values [B] of x, where it has columns, and of every linear's part of y."""
    border = x_shape[0] * x_shape[1]
    found = [_largest(values_BV[:, :border], (1,))] if x_shape[1] else []
    y_BMN = values_BV[:, border:].view(len(values_BV), out_rows, sum(widths))
    return found + [_largest(part, (1, 2)) for part in torch.split(y_BMN, list(widths), dim=2)]


def _largest(values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """The largest absolute value over those dimensions: one pass, NaN if there is one, 0 for no values."""
    if values.numel() == 0:
        return values.new_zeros(values.shape[0])
    found: torch.Tensor = torch.linalg.vector_norm(values, ord=float("inf"), dim=dims)
    return found
