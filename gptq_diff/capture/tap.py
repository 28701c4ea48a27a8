"""The tap on a kernel call: what goes in and what comes out of every quantised linear, once a step."""

from __future__ import annotations

from collections import Counter
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
from gptq_diff.capture.settle import Settling
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.staging import Chunk, Staging
from gptq_diff.errors import CaptureError
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
        self._step = -1
        self._seen: set[str] = set()
        self._index: dict[str, int] = {}  # layers, in order of execution
        self._last: _Input | None = None
        self._x_size = Magnitude(0.0, 0, 0)  # of the input last looked at here
        self._biases: list[BiasStep] = []
        self._settling = Settling(sink)
        self._staging: Staging | None = None
        self._stage: Stage | None = None
        self._expected_values = 0
        self.rows_seen: dict[int, str] = {}  # of staged calls of this step, once they have left, and who had so many

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._staging is not None:
            self._staging.abandon()

    def stage_in(self, stage: Stage) -> None:
        """Calls of a GPU are staged there: by `record`, and by whoever puts some there by itself.

        Asked for before the first call; else they have a stage of their own.
        """
        stage.close()
        self._stage = stage

    def begin_step(self, step: int, expected_values: int = 0) -> None:
        """A forward pass begins; expected_values: of all its inputs and outputs, 0 where that is not known."""
        self._step, self._seen, self._index, self._last, self.rows_seen = step, set(), {}, None, {}
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
        index = self._place(layer, stored)
        last = self._last
        shared = last is not None and last.is_also(x_MK)
        copy_MK = None
        if last is None or not shared:
            copy_MK = x_MK.clone(memory_format=torch.contiguous_format)
            last = self._last = _Input(x_MK, copy_MK, stored)
            self._x_size = magnitude(copy_MK)
        wanted = self.sink.wants_tensors
        call = Call(
            self._step, index, layer, path, x_MK.shape[0], x_MK.shape[1], y_MN.shape[1], self._x_size, magnitude(y_MN),
            last.layer if shared else None, part, first,
        )  # fmt: skip
        y_copy_MN = y_MN.clone(memory_format=torch.contiguous_format) if wanted else None
        self.sink.take(call, copy_MK if wanted else None, y_copy_MN)

    @property
    def asks_bias(self) -> bool:
        """Whether `record_bias` is to be called: in the prefill alone."""
        return self._step == 0

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

    def _place(self, layer: str, stored: str) -> int:
        """The layer's place in this step's order of execution; refused where the call may not come."""
        if stored in self._seen:
            raise CaptureError(f"{stored} ran twice in step {self._step}", "this model's structure is not understood")
        if layer not in self.expected:
            raise CaptureError(
                f"{layer} ran in step {self._step}, and is none of the quantised linears of the checkpoint",
                "this model's structure is not understood",
            )
        self._seen.add(stored)
        return self._index.setdefault(layer, len(self._index))

    def _later(self) -> Staging:
        """Where calls of a GPU are staged."""
        if self._staging is None:
            wanted = self.sink.wants_tensors
            beside = self.sink.later and wanted
            stage = self._stage or Stage()
            self._staging = Staging(self._settle, self._number, stage, wants_tensors=wanted, beside=beside)
            self._staging.begin_step(self._step, self._expected_values)
        return self._staging

    def _number(self, chunk: Chunk) -> None:
        """The places of all calls in a chunk that is about to leave: the engine waits for this, so all at once."""
        chunk.layers = self._index
        stored = [name for call in chunk.calls for name in call[0].stored]
        layers = [name for call in chunk.calls for name in call[0].parts.layers]
        new = set(stored)
        if len(new) < len(stored) or not self._seen.isdisjoint(new) or not self.expected.issuperset(layers):
            for layer, name in zip(layers, stored):
                self._place(layer, name)  # says which
        self._seen |= new
        index = self._index
        for layer in layers:
            index.setdefault(layer, len(index))
        rows = {call[2][0] for call in chunk.calls}
        if not rows <= self.rows_seen.keys():
            for call in chunk.calls:
                self.rows_seen.setdefault(call[2][0], call[0].stored[0])

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
        self._check_biases(biases)
        if self._staging is not None:
            self._staging.end_step(biases, self._index)
            if not self.sink.later:
                self._staging.drain.finish()
        else:
            for bias in biases:
                self._take_bias(self._step, self._index[bias.layer], bias)
        if len(self._index) < len(self.expected):
            missing = sorted(self.expected.difference(self._index))
            raise CaptureError(
                f"{len(missing)} of {len(self.expected)} quantised linears did not run in step {self._step}, "
                f"the first is {missing[0]}",
                "the engine bypasses the tap on them (a fused or compiled path?)",
            )
        if self._step == 0:
            self.order = list(self._index)
        self._last = None

    def _check_biases(self, biases: list[BiasStep]) -> None:
        """Each is of a linear that ran in this step, which has one."""
        names = [bias.layer for bias in biases]
        layers = frozenset(names)
        if len(layers) == len(names) and layers <= self._index.keys():
            return
        odd = {layer: "ran twice" for layer, times in Counter(names).items() if times > 1}
        odd |= dict.fromkeys(sorted(layers - self._index.keys()), "came without its linear")
        for layer, what in odd.items():
            raise CaptureError(
                f"{stored_name(layer, BIAS)} {what} in step {self._step}", "this model's structure is not understood"
            )

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
