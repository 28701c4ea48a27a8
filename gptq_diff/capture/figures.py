"""The figures of calls in a chunk: from what looks told, or from the largest values that were found of it."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.capture.stage import AsStaged
from gptq_diff.capture.staging import Chunk
from gptq_diff.numerics.magnitude import Magnitude, magnitude

_INFINITE = float("inf")


class Figures(NamedTuple):
    """Of one call: x's, None where it is that of the call before; those of every linear of y."""

    x: Magnitude | None
    y: tuple[Magnitude, ...]


Parts = tuple[torch.Tensor, ...]
Ask = Callable[[AsStaged], Figures]


def figures_in(chunk: Chunk) -> Ask:
    """What says the figures of any of its calls; it has arrived."""
    assert chunk.shipped is not None
    if chunk.looked:
        assert chunk.dtype is not None
        return _Told(chunk.shipped.figures, chunk.dtype).of
    return _Largest(chunk, chunk.shipped.figures.float().numpy()).of


class _Told:
    """Looks have counted all there is."""

    def __init__(self, told: torch.Tensor, dtype: torch.dtype) -> None:
        by_tensor = told.view(-1, 3)
        tops = by_tensor[:, 0].to(torch.int16).view(dtype).tolist()
        self._all = [Magnitude(top, nan, inf) for top, (_, nan, inf) in zip(tops, by_tensor.tolist())]

    def of(self, call: AsStaged) -> Figures:
        """Of that call."""
        first = call[8] // 3
        return Figures(self._all[first], tuple(self._all[first + 1 : first + 1 + len(call[0].parts.widths)]))


class _Largest:
    """Only the largest values are known, NaN and infinities among them: those are counted where there are any."""

    def __init__(self, chunk: Chunk, largest: npt.NDArray[np.float32]) -> None:
        self._chunk = chunk
        self._largest = largest

    def of(self, call: AsStaged) -> Figures:
        """Of that call."""
        site, offset, rows, inner, out_rows, _, own_x, apart, _ = call
        chunk, widths, unit = self._chunk, site.parts.widths, self._chunk.width
        border = offset + (rows * inner if own_x else 0)
        x = None
        if own_x:
            top = float(self._largest[offset // unit : border // unit].max(initial=0.0))
            x = Magnitude(top, 0, 0) if top < _INFINITE else magnitude(chunk.values[offset:border])
        by_part = _by_part_apart if apart else _by_part
        tops = by_part(self._largest[border // unit :], out_rows, widths, unit)
        if all(top < _INFINITE for top in tops):  # False where one is NaN
            return Figures(x, tuple(Magnitude(top, 0, 0) for top in tops))
        parts = parts_of(chunk, call)
        y = (Magnitude(top, 0, 0) if top < _INFINITE else magnitude(part) for top, part in zip(tops, parts))
        return Figures(x, tuple(y))


def parts_of(chunk: Chunk, call: AsStaged) -> Parts:
    """What every linear of a call gave: [M, N of it], views of what has landed."""
    site, offset, x_rows, inner, rows, columns, own_x, apart, _ = call
    border = offset + (x_rows * inner if own_x else 0)
    y, widths = chunk.values[border : border + rows * columns], site.parts.widths
    if apart:
        return tuple(part.view(rows, -1) for part in torch.split(y, [rows * width for width in widths]))
    return torch.split(y.view(rows, columns), list(widths), dim=1)


def _by_part(largest: npt.NDArray[np.float32], rows: int, widths: tuple[int, ...], unit: int) -> tuple[float, ...]:
    """The largest value of every linear's columns, from those of `unit` columns each, row by row."""
    columns = sum(widths) // unit
    by_column = largest[: rows * columns].reshape(rows, columns).max(axis=0, initial=0.0)
    if len(widths) == 1:
        return (float(by_column.max()),)
    starts = np.cumsum((0, *widths[:-1])) // unit
    return tuple(np.maximum.reduceat(by_column, starts).tolist())


def _by_part_apart(
    largest: npt.NDArray[np.float32], rows: int, widths: tuple[int, ...], unit: int
) -> tuple[float, ...]:
    """The same where every linear's columns lie by themselves."""
    ends: npt.NDArray[Any] = np.cumsum([rows * width // unit for width in widths])
    return tuple(float(part.max(initial=0.0)) for part in np.split(largest[: ends[-1]], ends[:-1]))
