"""What is said of the calls in a chunk: their figures, and their tensors as the sink wants them."""

from __future__ import annotations

from gptq_diff.capture.call import Call, Sink
from gptq_diff.capture.figures import Ask, figures_in, parts_of
from gptq_diff.capture.stage import AsStaged
from gptq_diff.capture.staging import Chunk
from gptq_diff.numerics.magnitude import Magnitude


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
        ask = figures_in(chunk)
        for call in chunk.calls:
            self._hand_on(chunk, call, ask)

    def _hand_on(self, chunk: Chunk, call: AsStaged, ask: Ask) -> None:
        """Every linear of one kernel call."""
        site, offset, rows, inner, _, _, own_x, _, _ = call
        wanted, widths, figures = self._sink.wants_tensors, site.parts.widths, ask(call)
        if figures.x is not None:
            self._x_size, self._x_name = figures.x, site.stored[0]
        x_MK = chunk.values[offset : offset + rows * inner].view(rows, inner) if wanted and own_x else None
        parts = parts_of(chunk, call) if wanted else None
        for i, (layer, y_size) in enumerate(zip(site.parts.layers, figures.y)):
            own = own_x and i == 0  # the others of a fused kernel share it with the first
            told = Call(
                chunk.step, chunk.layers[layer], layer, site.path, rows, inner, widths[i], self._x_size, y_size,
                None if own else self._x_name, site.part, site.first,
            )  # fmt: skip
            self._sink.take(told, x_MK if own else None, parts[i].contiguous() if parts is not None else None)
