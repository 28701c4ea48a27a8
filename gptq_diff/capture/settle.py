"""What is said of the calls in a chunk: their figures, and their tensors as the sink wants them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.capture.call import Call, Sink, stored_name
from gptq_diff.capture.staging import Chunk, Staged
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

    def _hand_on(self, chunk: Chunk, call: Staged, indexes: tuple[int, ...], largest: npt.NDArray[np.float32]) -> None:
        """Every linear of one kernel call."""
        wanted, widths = self._sink.wants_tensors, call.parts.widths
        rows, inner = call.shape
        border = call.offset + (rows * inner if call.own_x else 0)
        x_MK = None
        if call.own_x:
            top = float(largest[call.offset // chunk.width : border // chunk.width].max(initial=0.0))
            if wanted or not top < _INFINITE:
                x_MK = _values(chunk)[call.offset : border].view(rows, inner)
            self._x_size = Magnitude(top, 0, 0) if top < _INFINITE or x_MK is None else magnitude(x_MK)
            self._x_name = stored_name(call.parts.layers[0], call.part)
        tops = _by_part(largest[border // chunk.width :], call.out_rows, widths, chunk.width)
        finite = all(top < _INFINITE for top in tops)  # False where one is NaN
        parts: tuple[torch.Tensor, ...] = ()
        if wanted or not finite:
            end = border + call.out_rows * sum(widths)
            parts = torch.split(_values(chunk)[border:end].view(call.out_rows, -1), list(widths), dim=1)
        for i, (layer, top) in enumerate(zip(call.parts.layers, tops)):
            y_MN = parts[i].contiguous() if parts else None
            y_size = Magnitude(top, 0, 0) if finite or y_MN is None else magnitude(y_MN)
            own = call.own_x and i == 0  # the others of a fused kernel share it with the first
            told = Call(
                chunk.step, indexes[i], layer, call.path, rows, inner, widths[i], self._x_size, y_size,
                None if own else self._x_name, call.part, call.first,
            )  # fmt: skip
            self._sink.take(told, x_MK if wanted and own else None, y_MN if wanted else None)


def _values(chunk: Chunk) -> torch.Tensor:
    return chunk.values if chunk.landed is None else chunk.landed


def _by_part(largest: npt.NDArray[np.float32], out_rows: int, widths: tuple[int, ...], unit: int) -> tuple[float, ...]:
    """The largest value of every linear's columns, from those of `unit` columns each, row by row."""
    columns = sum(widths) // unit
    by_column = largest[: out_rows * columns].reshape(out_rows, columns).max(axis=0, initial=0.0)
    if len(widths) == 1:
        return (float(by_column.max()),)
    starts = np.cumsum((0, *widths[:-1])) // unit
    return tuple(np.maximum.reduceat(by_column, starts).tolist())
