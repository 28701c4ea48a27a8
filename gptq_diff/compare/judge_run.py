"""Judging a whole run: layer by layer, one dequantisation each for all backends, prompts and steps."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.alike import as_of, first_alike
from gptq_diff.compare.freed import Freed
from gptq_diff.compare.judge import CapturedCall, Weight, judge_layer
from gptq_diff.compare.place import given_back, linears_on
from gptq_diff.compare.quantisation import quantisation_errors
from gptq_diff.compare.rows import CallRows, Figures
from gptq_diff.compare.steps_after import judge_step
from gptq_diff.judged_file import read_judged as read_judged
from gptq_diff.judged_file import write_judged as write_judged
from gptq_diff.records import BOUNDED, ORIGINAL, Judgement, LayerSpec
from gptq_diff.rows_file import read_rows, rows_file, write_rows

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint

Key = tuple[str, str]
"""(backend, prompt)."""


def layer_weight(spec: LayerSpec, judge: Checkpoint, loaded: Checkpoint, out: torch.Tensor | None = None) -> Weight:
    """The exact weight from the judging checkpoint, and the columns that non-finite scales spoil in either.

    out: float32 memory for the weight, used again for the next layer.
    """
    return weight_of(judge.packed(spec.name), None if loaded is judge else loaded, out)


def weight_of(linear: PackedLinear, loaded: Checkpoint | None, out: torch.Tensor | None = None) -> Weight:
    """`layer_weight` of a linear that may lie on a GPU; loaded: None where the backends loaded the same checkpoint."""
    spec = linear.spec
    bad_N = ~torch.isfinite(linear.scales.float()).all(dim=0)
    loaded_bad_N = bad_N
    if loaded is not None:
        loaded_bad_N = ~torch.isfinite(loaded.packed(spec.name).scales.float()).all(dim=0).to(bad_N.device)
    return Weight(spec, None, bad_N, loaded_bad_N, linear, out)


def judge_captures(
    captures: dict[Key, Captured], judge: Checkpoint, loaded: Checkpoint, progress: Callable[[int, int], None]
) -> dict[Key, list[Judgement]]:
    """Judgements of every kept call, by capture, in order of execution; computed on judge.work_device.

    What each took is added to its `seconds`, the figures of single rows to its `rows`. Where a GPU's memory does not
    suffice for a linear, that one is judged on the CPU.
    """
    with given_back(judge.work_device):
        return _judged(captures, judge, loaded, progress)


def _judged(
    captures: dict[Key, Captured], judge: Checkpoint, loaded: Checkpoint, progress: Callable[[int, int], None]
) -> dict[Key, list[Judgement]]:
    device = judge.work_device
    judged: dict[Key, list[Judgement]] = {key: [] for key in captures}
    largest = max((s.in_features * s.out_features for s in judge.layers), default=0)
    memory = torch.empty(largest, dtype=torch.float32, device=device)
    there = [spec for spec in judge.layers if any(captured.has_calls(spec.name) for captured in captures.values())]
    for captured in captures.values():
        captured.compare_inputs()
    freed = Freed()
    started = time.perf_counter()
    for done, (spec, linear) in enumerate(linears_on(device, judge, there)):
        all_calls = ((key, call) for key, captured in captures.items() for call in captured.calls(spec.name))
        calls = [(key, call) for key, call in all_calls if call.path != BOUNDED]  # those hold the exact answer already
        if calls:
            single: list[Figures] = []
            found = _judged_there(linear, judge, loaded, memory, [call for _, call in calls], single)
            rows_of = iter(single)
            for (key, call), judgement in zip(calls, found):
                judged[key].append(judgement)
                if _is_product(call):
                    captures[key].rows.add(CallRows(spec.name, call.step, call.index, next(rows_of)), call.part)
            before, started = started, time.perf_counter()
            _share_out(started - before, [(captures[key], call.x_MK.shape[0]) for key, call in calls])
            freed.add(sum(4 * (call.x_MK.numel() + call.y_MN.numel()) for _, call in calls))
        progress(done + 1, len(there))
    for rows in judged.values():
        rows.sort(key=lambda j: (j.step, j.index))  # stable: a layer's ranks, then what follows them
    return judged


def _judged_there(
    linear: PackedLinear, judge: Checkpoint, loaded: Checkpoint, memory: torch.Tensor, calls: list[CapturedCall],
    single: list[Figures],
) -> list[Judgement]:  # fmt: skip
    """`judge_calls` where the linear lies, or on the CPU where that runs out of memory."""
    other = None if loaded is judge else loaded
    try:
        return judge_calls(weight_of(linear, other, memory), calls, single)
    except torch.cuda.OutOfMemoryError:
        single.clear()
        return judge_calls(weight_of(judge.packed(linear.spec.name), other), calls, single)


def judge_calls(weight: Weight, calls: list[CapturedCall], rows_of: list[Figures] | None = None) -> list[Judgement]:
    """One judgement a call, in the order given: kernels' products, steps after them, unquantised linears.

    rows_of: as in judge_layer, of the products alone.
    """
    of_product = iter(_judge_products(weight, [call for call in calls if _is_product(call)], rows_of))
    of_original = iter(quantisation_errors(weight, [call for call in calls if call.path == ORIGINAL]))
    found = []
    for call in calls:
        if call.path in STEPS_AFTER:
            bias_N = _bias_of(weight)
            found.append(judge_step(weight.spec.name, call, bias_N))
        else:
            found.append(next(of_original if call.path == ORIGINAL else of_product))
    return found


def _judge_products(weight: Weight, calls: list[CapturedCall], rows_of: list[Figures] | None) -> list[Judgement]:
    """`judge_layer`, and what it found once more for calls that are just like another."""
    first = first_alike(calls)
    once = sorted(set(first))
    single: list[Figures] = []
    found = dict(zip(once, judge_layer(weight, [calls[i] for i in once], single)))
    figures = dict(zip(once, single))
    if rows_of is not None:
        rows_of.extend(figures[i] for i in first)
    return [found[i] if i == own else as_of(calls[own], found[i]) for own, i in enumerate(first)]


def _bias_of(weight: Weight) -> torch.Tensor | None:
    """The checkpoint's, on the CPU, where steps after a product are judged."""
    if weight.linear is None or weight.linear.bias is None:
        return None
    return weight.linear.bias.cpu()


def _is_product(call: CapturedCall) -> bool:
    """Whether a kernel multiplied there: neither a step after it nor an unquantised linear."""
    return call.path not in STEPS_AFTER and call.path != ORIGINAL


def _share_out(seconds: float, rows: list[tuple[Captured, int]]) -> None:
    """A layer is judged for all captures together: each is said to take its share of the rows."""
    total = sum(n for _, n in rows)
    for captured, n in rows:
        captured.seconds += seconds * n / total


def store_rows(run: RunDir, key: Key, captured: Captured) -> None:
    """Keep the figures of single rows; of a pruned capture, which has fewer linears left, the earlier ones stay."""
    fresh, path = captured.rows.map(), rows_file(run.root, *key)
    if fresh is None:
        return
    stored = read_rows(path)
    if stored is None or len(fresh.layers) >= len(stored.layers):
        write_rows(path, fresh)


def open_captures(
    run: RunDir, keys: Sequence[Key], reference: str, whole: Collection[Key] = ()
) -> dict[Key, Captured]:  # fmt: skip
    """Readers for those captures, each beside the reference's capture of the same prompt.

    whole: captures that are there too; of these the reference's are looked at.
    """
    readers = {key: run.reader(*key) for key in keys}
    prompts = dict.fromkeys(prompt for backend, prompt in keys if backend != reference)
    beside = {p: readers.get((reference, p)) for p in prompts}
    for prompt, reader in beside.items():
        if reader is None and (reference, prompt) in whole:
            beside[prompt] = run.reader(reference, prompt)
    return {
        (backend, prompt): Captured(reader, None if backend == reference else beside[prompt])
        for (backend, prompt), reader in readers.items()
    }
