"""Packed linears brought to a GPU one after the other, the next ones read and sent while one is worked on.

They are read from the files themselves: a map brings in page after page, at a third of the speed, and in every process
anew. Several are read at once, since one thread copies out of the page cache slower than a GPU takes it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gptq_diff.errors import CheckpointError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.header import TensorEntry
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.records import LayerSpec

READERS = 3
AHEAD = 4
"""Linears that are read and sent while one is worked on."""


def brought(
    checkpoint: Checkpoint, specs: Sequence[LayerSpec], device: torch.device
) -> Iterator[tuple[LayerSpec, PackedLinear]]:
    """Every linear on that GPU, in the order given. CheckpointError where a file cannot be read."""
    bring = _Bring(checkpoint, device)
    pool_after_fork()
    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[tuple[LayerSpec, Future[_Brought]]] = deque()
        todo = iter(specs)
        try:
            while True:
                while len(waiting) <= AHEAD and (following := next(todo, None)) is not None:
                    waiting.append((following, readers.submit(bring, following)))
                if not waiting:
                    return
                spec, future = waiting.popleft()
                yield spec, future.result().arrived()
        finally:
            for _, future in waiting:
                future.cancel()


def pool_after_fork() -> None:
    """Torch's thread pool is made anew, if this is the child of a fork.

    A child's threads do that by themselves with their first operation, and two at once end in "Invalid thread pool!"
    (caffe2/utils/threadpool/pthreadpool-cpp.cc; an engine's ranks are such children).
    """
    torch.set_num_threads(torch.get_num_threads())


class _Brought(NamedTuple):
    """A linear on its way to the GPU; sent: the event after it."""

    linear: PackedLinear
    sent: Any

    def arrived(self) -> PackedLinear:
        """The linear, for whatever is launched from now on."""
        here = torch.cuda.current_stream(self.linear.qweight.device)
        here.wait_event(self.sent)
        linear = self.linear
        for tensor in (linear.qweight, linear.qzeros, linear.scales, linear.g_idx, linear.bias):
            if tensor is not None:
                tensor.record_stream(here)
        return self.linear


class _Bring:
    """Reads a linear into pinned memory and sends it from there, on a stream of its own."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, spec: LayerSpec) -> _Brought:
        """Starts it; reading is done when this returns, sending may not be."""
        mapped = self._checkpoint.packed(spec.name)
        with torch.cuda.stream(self._stream):
            there = replace(
                mapped, qweight=self._sent(spec, "qweight", mapped.qweight),
                qzeros=self._sent(spec, "qzeros", mapped.qzeros), scales=self._sent(spec, "scales", mapped.scales),
                g_idx=None if mapped.g_idx is None else mapped.g_idx.to(self._device),
                bias=None if mapped.bias is None else self._sent(spec, "bias", mapped.bias),
            )  # fmt: skip
            return _Brought(there, self._stream.record_event())

    def _sent(self, spec: LayerSpec, what: str, mapped: torch.Tensor) -> torch.Tensor:
        here = host_memory(mapped)
        read_into(here, self._checkpoint.entry(f"{spec.name}.{what}"))
        return here.to(self._device, non_blocking=True)


def host_memory(like: torch.Tensor) -> torch.Tensor:
    """Pinned: a GPU reads it by itself, at the speed of its bus."""
    return torch.empty_like(like, pin_memory=True)


def let_go() -> None:
    """Torch gives back what it keeps of the memory that linears came through, pinned and on the GPU."""
    empty_host = getattr(torch._C, "_host_emptyCache", None)  # newer than the oldest torch that an engine brings along
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        if empty_host is not None:
            empty_host()


def read_into(tensor: torch.Tensor, entry: TensorEntry) -> None:
    """Fill a contiguous tensor of the CPU with the bytes of that entry; other threads go on meanwhile."""
    octets = tensor.view(-1).view(torch.uint8).numpy().data
    done, size = 0, entry.end - entry.start
    if len(octets) != size:
        raise CheckpointError(f"{entry.file} holds {size} bytes where {len(octets)} were expected")
    try:
        with entry.file.open("rb", buffering=0) as file:
            while done < size:
                read = os.preadv(file.fileno(), [octets[done:]], entry.start + done)
                if read == 0:
                    raise CheckpointError(f"{entry.file} ends before byte {entry.end}; fetch the file again")
                done += read
    except OSError as e:
        raise CheckpointError(f"{entry.file} cannot be read: {e.strerror or e}") from e
