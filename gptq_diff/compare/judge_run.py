"""Judging a whole run: layer by layer, one dequantisation each for all backends, prompts and steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.judge import Weight, judge_layer
from gptq_diff.compare.steps_after import judge_step
from gptq_diff.judged_file import read_judged as read_judged
from gptq_diff.judged_file import write_judged as write_judged
from gptq_diff.records import Judgement, LayerSpec

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint

Key = tuple[str, str]
"""(backend, prompt)."""


def layer_weight(spec: LayerSpec, judge: Checkpoint, loaded: Checkpoint, out: torch.Tensor | None = None) -> Weight:
    """The exact weight from the judging checkpoint, and the columns that non-finite scales spoil in either.

    out: float32 memory for the weight, used again for the next layer, whose page faults would cost more than the work.
    """
    linear = judge.packed(spec.name)
    bad_N = ~torch.isfinite(linear.scales.float()).all(dim=0)
    loaded_bad_N = bad_N
    if loaded is not judge:
        loaded_bad_N = ~torch.isfinite(loaded.packed(spec.name).scales.float()).all(dim=0)
    return Weight(spec, dequantise(linear, torch.float32, out=out), bad_N, loaded_bad_N, linear)


def judge_captures(
    captures: dict[Key, Captured], judge: Checkpoint, loaded: Checkpoint, progress: Callable[[int, int], None]
) -> dict[Key, list[Judgement]]:
    """Judgements of every kept call, by capture, in order of execution."""
    judged: dict[Key, list[Judgement]] = {key: [] for key in captures}
    memory = torch.empty(max((s.in_features * s.out_features for s in judge.layers), default=0), dtype=torch.float32)
    for done, spec in enumerate(judge.layers):
        calls = [(key, call) for key, captured in captures.items() for call in captured.calls(spec.name)]
        if calls:
            weight = layer_weight(spec, judge, loaded, memory)
            products = [(key, call) for key, call in calls if call.path not in STEPS_AFTER]
            for (key, _), judgement in zip(products, judge_layer(weight, [call for _, call in products])):
                judged[key].append(judgement)
            for key, call in calls:
                if call.path in STEPS_AFTER:
                    judged[key].append(judge_step(spec.name, call))
        progress(done + 1, len(judge.layers))
    for rows in judged.values():
        rows.sort(key=lambda j: (j.step, j.index))  # stable: a layer's ranks, then what follows them
    return judged


def open_captures(run: RunDir, keys: list[Key], reference: str) -> dict[Key, Captured]:
    """Readers for those captures, each beside the reference's capture of the same prompt."""
    readers = {key: run.reader(*key) for key in keys}
    return {
        (backend, prompt): Captured(reader, None if backend == reference else readers.get((reference, prompt)))
        for (backend, prompt), reader in readers.items()
    }
