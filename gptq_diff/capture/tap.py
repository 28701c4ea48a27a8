"""The tap on a kernel call: what goes in and what comes out of every quantised linear, once a step."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import torch

from gptq_diff.capture.bias_step import BiasStep
from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.call import ALL_REDUCE as ALL_REDUCE
from gptq_diff.capture.call import BIAS as BIAS
from gptq_diff.capture.call import REPLICATED as REPLICATED
from gptq_diff.capture.call import Call as Call
from gptq_diff.capture.call import Fused as Fused
from gptq_diff.capture.call import Sink as Sink
from gptq_diff.capture.call import layer_of as layer_of
from gptq_diff.capture.call import stored_name as stored_name
from gptq_diff.capture.numbering import Known, Numbering
from gptq_diff.capture.settle import Settling
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.staging import Chunk, Staging
from gptq_diff.numerics.magnitude import Magnitude, magnitude


class _Input(NamedTuple):
    """The input last seen: the engine's tensor (held, so that its address is not used again) and a copy of it.

    layer: stored name of the call that brought it.
    """

    x_MK: torch.Tensor
    copy_MK: torch.Tensor
    layer: str

    def is_also(self, x_MK: torch.Tensor) -> bool:
        """Whether x is that same tensor and still holds the same values: engines reuse buffers, and work in place."""
        same_place = (
            x_MK.data_ptr() == self.x_MK.data_ptr()
            and x_MK.dtype == self.x_MK.dtype
            and x_MK.shape == self.x_MK.shape
            and x_MK.stride() == self.x_MK.stride()
        )
        return same_place and same_bits(self.x_MK, self.copy_MK)


class Tap:
    """Collects the kernel calls of one prompt and refuses to let one go missing.

    On a GPU copies are made at once, and leave it beside the engine's work (gptq_diff.capture.staging); a sink that
    allows it is given them later, so a tap has to be closed: use it as a context manager, or call `close`.
    expected: the layers that must be seen exactly once in every step. order: the layers as the prefill ran them.
    """

    def __init__(self, expected: frozenset[str], sink: Sink) -> None:
        self.expected = expected
        self.sink = sink
        self.order: list[str] = []
        self._known = Known()
        self._numbering = Numbering(-1, expected, self._known)
        self._last: _Input | None = None
        self._x_size = Magnitude(0.0, 0, 0)  # of the input last looked at here
        self._biases: list[BiasStep] = []
        self._settling = Settling(sink)
        self._staging: Staging | None = None
        self._stage: Stage | None = None
        self._expected_values = 0

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._staging is not None:
            self._staging.abandon()

    def stage_in(self, stage: Stage, known: Known) -> None:
        """Calls of a GPU are staged there: by `record`, and by whoever puts some there by itself.

        Asked for before the first call; else they have a stage of their own. known: what prompts before were like.
        """
        stage.close()
        self._stage, self._known = stage, known

    def begin_step(self, step: int, expected_values: int = 0) -> None:
        """A forward pass begins; expected_values: of all its inputs and outputs, 0 where that is not known."""
        self._numbering, self._last = Numbering(step, self.expected, self._known), None
        self._expected_values = expected_values
        if self._staging is not None:
            self._staging.begin_step(step, expected_values)

    def record(
        self, layer: str, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str, *, part: str = "", first: int = 0
    ) -> None:
        """Called right after the kernel, before anything is done to y. part, first: as in Call."""
        if asks_later(x_MK) and x_MK.dtype is y_MN.dtype:
            self._later().add(site(Fused((layer,), (y_MN.shape[1],)), path, part, first), x_MK, y_MN)
            return
        self._hand_on()
        stored = stored_name(layer, part)
        index = self._numbering.call(layer, stored)
        last = self._last
        shared = last is not None and last.is_also(x_MK)
        copy_MK = None
        if last is None or not shared:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK, stored)
            self._x_size = magnitude(copy_MK)
        wanted = self.sink.wants_tensors
        call = Call(
            self._numbering.step, index, layer, path, x_MK.shape[0], x_MK.shape[1], y_MN.shape[1], self._x_size,
            magnitude(y_MN), last.layer if shared else None, part, first,
        )  # fmt: skip
        y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format) if wanted else None
        self.sink.take(call, copy_MK if wanted else None, y_copy_MN)

    @property
    def asks_bias(self) -> bool:
        """Whether `record_bias` is to be called: in the prefill alone."""
        return self._numbering.step == 0

    def record_bias(self, *biases: BiasStep) -> None:
        """Linears' biases; handed on when the step ends, after all its kernel calls."""
        self._biases += biases

    def record_fused(self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str) -> None:
        """`record` for every linear of one kernel call, whose outputs lie side by side in y."""
        if asks_later(x_MK) and x_MK.dtype is y_MN.dtype:
            self._later().add(site(parts, path), x_MK, y_MN)
            return
        for layer, columns_MN in zip(parts.layers, torch.split(y_MN, list(parts.widths), dim=1)):
            self.record(layer, x_MK, columns_MN, path)

    def _later(self) -> Staging:
        """Where calls of a GPU are staged."""
        if self._staging is None:
            wanted = self.sink.wants_tensors
            beside = self.sink.later and wanted
            stage = self._stage or Stage()
            self._staging = Staging(self._settle, self._number, stage, wants_tensors=wanted, beside=beside)
            self._staging.begin_step(self._numbering.step, self._expected_values)
        return self._staging

    def _number(self, chunk: Chunk) -> None:
        """The places of all calls in a chunk that is about to leave."""
        self._numbering.chunk(chunk.calls)
        chunk.layers = self._numbering.index

    def _settle(self, chunk: Chunk) -> None:
        """A chunk's calls, then its biases, to the sink."""
        self._settling.calls_of(chunk)
        for bias in chunk.after:
            self._take_bias(chunk.step, chunk.layers[bias.layer], bias)
        self.sink.let_go()

    def _hand_on(self) -> None:
        """All that is staged to the sink, before a call that goes there directly."""
        if self._staging is not None:
            self._staging.ship()
            self._staging.drain.finish()

    def _take_bias(self, step: int, index: int, bias: BiasStep) -> None:
        """Its call to the sink."""
        rows, columns = bias.product_RN.shape
        call = Call(step, index, bias.layer, BIAS, rows, columns, columns, bias.product, bias.with_bias, None, BIAS)
        wanted = self.sink.wants_tensors
        self.sink.take(call, bias.product_RN if wanted else None, bias.with_bias_1N if wanted else None)

    def end_step(self) -> None:
        """A forward pass has ended: every expected layer must have been seen exactly once."""
        biases, self._biases = self._biases, []
        if self._staging is not None:
            self._staging.ship()
        numbering = self._numbering
        numbering.end(biases)
        if self._staging is not None:
            self._staging.end_step(biases, numbering.index)
            if not self.sink.later:
                self._staging.drain.finish()
        else:
            for bias in biases:
                self._take_bias(numbering.step, numbering.index[bias.layer], bias)
        if numbering.step == 0:
            self.order = list(numbering.index)
        self._last = None

    @property
    def rows_seen(self) -> dict[int, str]:
        """Numbers of rows that staged calls of this step had, once they have left, and who had so many."""
        return self._numbering.rows

    def copied(self) -> None:
        """Wait until the copies of all steps that have ended are in host memory."""
        if self._staging is not None:
            self._staging.copied()

    @property
    def waited(self) -> int:
        """How often the engine had to wait for the sink, all host memory for copies being taken."""
        return 0 if self._staging is None else self._staging.drain.waited

    def close(self) -> None:
        """The last step has ended: all that is staged goes to the sink. Raises what the sink raised meanwhile."""
        if self._staging is not None:
            self._hand_on()
            self._staging.stop()


def asks_later(t: torch.Tensor) -> bool:
    """Whether copies of that tensor are staged where it lies."""
    return t.is_cuda
