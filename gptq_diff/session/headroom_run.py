"""Headroom of a judged run: how near every capture's sums come to overflow, layer by layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.freed import Freed
from gptq_diff.compare.judge_run import Key, open_captures
from gptq_diff.compare.place import AT_A_TIME, CPU, given_back, linears_on
from gptq_diff.diagnose.headroom import Nearest, Share, arithmetics_of, every_arithmetic, measure, share_of
from gptq_diff.records import BOUNDED, ORIGINAL, Headroom, LayerSpec, swept_prompt
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.behind import GoOn, unhindered
from gptq_diff.session.headroom_file import headroom_file, read_headroom, write_headroom

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint

LARGE = 1 << 24
"""Weights of a linear from which on two at a time are too much."""


@dataclass(frozen=True)
class _Stack:
    """The inputs of one linear, or of a rank's share of it, that went through the same sums, below each other.

    first: row of W that x's first column meets. steps: (step, rows) of each call, in the order of the rows.
    ran: whether the arithmetics are those of the kernel that ran.
    """

    stored: str
    first: int
    wanted: tuple[str, ...]
    x_MK: torch.Tensor
    steps: tuple[tuple[int, int], ...]
    ran: bool

    def place(self, row: int) -> tuple[int, int]:
        """(step, row of that step's x) of a row of the stack."""
        for step, rows in self.steps:
            if row < rows:
                return step, row
            row -= rows
        raise AssertionError("a row beyond the stack")


def measure_headroom(
    run: RunDir, record: RunRecord, keys: Sequence[Key], judge: Checkpoint, loaded: Checkpoint,
    go_on: GoOn = unhindered,
) -> None:  # fmt: skip
    """Write the headroom of those captures; layers whose tensors are gone keep what was measured before.

    Of a sweep over prompt lengths only the longest of each prompt is measured: it holds the rows of all others.
    go_on: called after each linear; what it raises ends this.
    """
    captures = open_captures(run, _longest(keys) if record.sweep else list(keys), record.reference)
    found: dict[Key, dict[str, list[Headroom]]] = {key: {} for key in captures}
    by_layer: Iterable[_Layer]
    freed = Freed()
    if judge.work_device.type == "cpu":
        by_layer = _each(judge.layers, lambda spec: _of_layer(spec, captures, record.reference, judge, loaded, freed))
    else:
        by_layer = _each_there(
            judge, lambda one: _of_layer(one.spec, captures, record.reference, judge, loaded, freed, one)
        )
    for layer in by_layer:
        go_on()
        for key, rows in layer.items():
            found[key].update(rows)
    for key, layers in found.items():
        captures[key].reader.close()
        path = headroom_file(run, key)
        earlier = {name: rows for name, rows in read_headroom(path).items() if name not in layers}
        write_headroom(path, {**earlier, **layers})


_Layer = dict[Key, dict[str, list[Headroom]]]


def _each(specs: Sequence[LayerSpec], measured: Callable[[LayerSpec], _Layer]) -> list[_Layer]:
    """One linear a thread: these sums are small, and sharing each out among threads takes longer than making it.

    Large linears go one after the other, since two at a time would take twice the memory.
    """
    threads = torch.get_num_threads()
    if threads == 1 or any(spec.in_features * spec.out_features > LARGE for spec in specs):
        return [measured(spec) for spec in specs]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(measured, specs))
    finally:
        torch.set_num_threads(threads)


def _each_there(judge: Checkpoint, measured: Callable[[PackedLinear], _Layer]) -> Iterator[_Layer]:
    """On a GPU: a few linears at a time, since half of the work is the CPU's; the next ones are on their way."""
    waiting: deque[Future[_Layer]] = deque()
    with given_back(judge.work_device), ThreadPoolExecutor(AT_A_TIME) as pool:
        for _, linear in linears_on(judge.work_device, judge, judge.layers):
            waiting.append(pool.submit(measured, linear))
            if len(waiting) == AT_A_TIME:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _of_layer(
    spec: LayerSpec, captures: dict[Key, Captured], reference: str, judge: Checkpoint, loaded: Checkpoint,
    freed: Freed, there: PackedLinear | None = None,
) -> _Layer:  # fmt: skip
    """Of one linear: by capture, by the name that its inputs are stored under. there: judge's, on a GPU."""
    found: _Layer = {key: {} for key in captures}
    done: list[tuple[_Stack, dict[str, Nearest]]] = []
    device = CPU if there is None else judge.work_device
    shares: dict[bool, tuple[Share, Share | None]] = {}
    for key, captured in captures.items():
        is_reference = key[0] == reference
        for stack in _stacks(captured, spec, device, is_reference=is_reference):
            own = judge if is_reference or loaded is judge else loaded
            if (own is judge) not in shares:
                packed = own.packed(spec.name)
                moved = there if there is None or own is judge else packed.to(judge.work_device)
                shares[own is judge] = share_of(packed), None if moved is None else share_of(moved)
            near = _measured(stack, shares[own is judge], done if own is loaded else [])
            rows = found[key].setdefault(stack.stored, [])
            rows += [_headroom(key, stack, name, nearest) for name, nearest in near.items()]
            freed.add(4 * len(stack.x_MK) * (stack.x_MK.shape[1] + spec.out_features))
    return found


def _longest(keys: Sequence[Key]) -> list[Key]:
    """Of every backend and swept prompt the greatest length (its digits are padded with zeros)."""
    last: dict[Key, Key] = {}
    for backend, prompt in keys:
        swept = (backend, swept_prompt(prompt))
        last[swept] = max(last.get(swept, (backend, prompt)), (backend, prompt))
    return list(last.values())


def _stacks(
    captured: Captured, spec: LayerSpec, device: torch.device, *, is_reference: bool
) -> Iterator[_Stack]:  # fmt: skip
    """Of one linear, on that device."""
    places: dict[tuple[str, int, tuple[str, ...], bool], list[int]] = {}
    for place in captured.places.get(spec.name, []):
        if place.path in STEPS_AFTER or place.path in {BOUNDED, ORIGINAL}:
            continue
        if captured.reader.has(place.step, place.stored, "in"):
            wanted = every_arithmetic(spec) if is_reference else arithmetics_of(place.path, spec)
            places.setdefault((place.stored, place.first, wanted, not is_reference), []).append(place.step)
    for (stored, first, wanted, ran), steps in places.items():
        inputs = [captured.reader.tensor(step, stored, "in").to(device).to(torch.float16) for step in steps]
        rows = tuple((step, len(x_MK)) for step, x_MK in zip(steps, inputs))
        yield _Stack(stored, first, wanted, torch.cat(inputs), rows, ran)


def _measured(
    stack: _Stack, shares: tuple[Share, Share | None], done: list[tuple[_Stack, dict[str, Nearest]]]
) -> dict[str, Nearest]:
    """Measure, or take what another backend's very same input gave."""
    for other, near in done:
        same = other.first == stack.first and set(stack.wanted) <= set(other.wanted)
        if same and torch.equal(other.x_MK, stack.x_MK):
            return {name: nearest for name, nearest in near.items() if name in stack.wanted}
    share, there = (None if s is None else s.rows(stack.first, stack.x_MK.shape[1]) for s in shares)
    assert share is not None
    try:
        near = measure(stack.x_MK, share, stack.wanted, there)
    except torch.cuda.OutOfMemoryError:
        near = measure(stack.x_MK.cpu(), share, stack.wanted)
    done.append((stack, near))
    return near


def _headroom(key: Key, stack: _Stack, arithmetic: str, near: Nearest) -> Headroom:
    step, row = stack.place(near.row)
    return Headroom(
        backend=key[0], ran=stack.ran, arithmetic=arithmetic, bits=round(near.bits, 4), layer=stack.stored,
        prompt=key[1], step=step, row=row, column=near.column, channel=stack.first + near.channel,
        activation=near.activation, weight=near.weight, value=near.value, terms=near.terms,
    )  # fmt: skip
