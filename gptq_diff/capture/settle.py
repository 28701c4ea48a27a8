"""What is said of the calls in a chunk: their figures, and their tensors as the sink wants them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.capture.call import Call, Sink
from gptq_diff.capture.stage import AsStaged
from gptq_diff.capture.staging import Chunk
from gptq_diff.numerics.magnitude import Magnitude, magnitude

_INFINITE = float("inf")


class Settling:
    """Hands calls to a sink, chunk by chunk in order; keeps what calls share from one to the next."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._x_size = Magnitude(0.0, 0, 0)  # of the input last handed on, and the name of the call that brought it
        self._x_name = ""

    def calls_of(self, chunk: Chunk) -> None:
        """All of them; waits until the chunk has arrived."""
        if chunk.shipped is None:
            return
        chunk.arrive()
        largest = chunk.shipped.largest.float().numpy()
        for call, indexes in zip(chunk.calls, chunk.indexes):
            self._hand_on(chunk, call, indexes, largest)

    def _hand_on(
        self, chunk: Chunk, call: AsStaged, indexes: tuple[int, ...], largest: npt.NDArray[np.float32]
    ) -> None:
        """Every linear of one kernel call."""
        site, offset, (rows, inner), (out_rows, columns), own_x, apart = call
        wanted, widths = self._sink.wants_tensors, site.parts.widths
        border = offset + (rows * inner if own_x else 0)
        x_MK = None
        if own_x:
            top = float(largest[offset // chunk.width : border // chunk.width].max(initial=0.0))
            if wanted or not top < _INFINITE:
                x_MK = chunk.values[offset:border].view(rows, inner)
            self._x_size = Magnitude(top, 0, 0) if top < _INFINITE or x_MK is None else magnitude(x_MK)
            self._x_name = site.stored[0]
        by_part = _by_part_apart if apart else _by_part
        tops = by_part(largest[border // chunk.width :], out_rows, widths, chunk.width)
        finite = all(top < _INFINITE for top in tops)  # False where one is NaN
        parts: tuple[torch.Tensor, ...] = ()
        if wanted or not finite:
            y = chunk.values[border : border + out_rows * columns]
            if apart:
                parts = tuple(part.view(out_rows, -1) for part in torch.split(y, [out_rows * n for n in widths]))
            else:
                parts = torch.split(y.view(out_rows, columns), list(widths), dim=1)
        for i, (layer, top) in enumerate(zip(site.parts.layers, tops)):
            own_y_MN = parts[i].contiguous() if parts else None
            y_size = Magnitude(top, 0, 0) if finite or own_y_MN is None else magnitude(own_y_MN)
            own = own_x and i == 0  # the others of a fused kernel share it with the first
            told = Call(
                chunk.step, indexes[i], layer, site.path, rows, inner, widths[i], self._x_size, y_size,
                None if own else self._x_name, site.part, site.first,
            )  # fmt: skip
            self._sink.take(told, x_MK if wanted and own else None, own_y_MN if wanted else None)


def _by_part(largest: npt.NDArray[np.float32], out_rows: int, widths: tuple[int, ...], unit: int) -> tuple[float, ...]:
    """The largest value of every linear's columns, from those of `unit` columns each, row by row."""
    columns = sum(widths) // unit
    by_column = largest[: out_rows * columns].reshape(out_rows, columns).max(axis=0, initial=0.0)
    if len(widths) == 1:
        return (float(by_column.max()),)
    starts = np.cumsum((0, *widths[:-1])) // unit
    return tuple(np.maximum.reduceat(by_column, starts).tolist())


def _by_part_apart(
    largest: npt.NDArray[np.float32], out_rows: int, widths: tuple[int, ...], unit: int
) -> tuple[float, ...]:
    """The same where every linear's columns lie by themselves."""
    ends = np.cumsum([out_rows * width // unit for width in widths])
    return tuple(float(part.max(initial=0.0)) for part in np.split(largest[: ends[-1]], ends[:-1]))
