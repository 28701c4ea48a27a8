"""The last workaround: a checkpoint with headroom, written below the run and run by the backends that failed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.results import FAILURES
from gptq_diff.errors import GptqDiffError
from gptq_diff.records import Report, Result, Workaround
from gptq_diff.session.asked import ALL, OFF, Asked
from gptq_diff.session.captured_inputs import inputs_of_run
from gptq_diff.session.fix_run import Fixed, fix_for_headroom
from gptq_diff.session.workarounds import store_workarounds

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptq_diff.checkpoint.reader import Checkpoint

NAME = "fixed checkpoint"
BITS = 2.0
"""Headroom that it is given: activations may grow four times before the fused path overflows again."""
CURED = "accumulator-overflow"
"""The cause that it can cure."""


def try_fixed_checkpoint(
    asked: Asked, run: RunDir, report: Report, model: Checkpoint, run_again: Callable[[Asked, RunDir], Report]
) -> bool:
    """Write the checkpoint, run the failing backends on it, store what came out; False where that is not asked for.

    run_again: the main job. The checkpoint is removed afterwards; `model fix` writes it again.
    """
    if asked.workarounds != ALL:
        return False
    failing = [r for r in report.results if r.status in FAILURES and any(f.cause == CURED for f in r.findings)]
    if not failing:
        return False
    place = run.root / "workarounds" / "fixed"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        with inputs_of_run(run.root, model) as inputs:
            fixed = fix_for_headroom(model, inputs, BITS, place / "model")
        nested = RunDir.create(place / "run", overwrite=False)
        try:
            again = run_again(_asked(asked, failing, fixed), nested)
        finally:
            nested.release()
        found = {(r.backend, r.prompt): _workaround(r, again, fixed) for r in failing}
    except GptqDiffError as e:
        found = {(r.backend, r.prompt): Workaround.run(NAME, str(e), works=False) for r in failing}
    for (backend, prompt), workaround in found.items():
        store_workarounds(run, backend, prompt, [workaround])
    shutil.rmtree(place, ignore_errors=True)
    return True


def _asked(asked: Asked, failing: list[Result], fixed: Fixed) -> Asked:
    names = {r.backend for r in failing} | {asked.reference}
    prompts = {r.prompt for r in failing}
    return replace(
        asked, model=Path(fixed.path), reference_model=Path(fixed.path), original=None, experiments=OFF,
        workarounds=OFF, capture="stats", repeats=1, prefix_cache=False,
        backends=tuple(b for b in asked.backends if b.name in names),
        prompts=tuple(p for p in asked.prompts if p.id in prompts),
    )  # fmt: skip


def _workaround(failed: Result, again: Report, fixed: Fixed) -> Workaround:
    results = {(r.backend, r.prompt): r for r in again.results}
    result, right = results.get((failed.backend, failed.prompt)), results.get((again.reference, failed.prompt))
    moved = sum(1 for move in fixed.moves if move.gain != 1)
    shifts = f"{moved} groups shifted by powers of two, the same function"
    if result is None:
        return Workaround.run(NAME, f"{shifts}; the backend did not finish on it", works=False)
    works = result.status == "agree" and not result.collapsed and right is not None and result.tokens == right.tokens
    said = "all linears agree, the reference's tokens" if works else f"{result.status}"
    return Workaround.run(NAME, f"{shifts}; {said}; nothing at run time: `gptq-diff model fix` writes it", works=works)
