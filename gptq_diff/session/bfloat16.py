"""The workaround of another dtype: failing backends that take bfloat16 are loaded anew in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.results import FAILURES
from gptq_diff.diagnose.workarounds.bfloat16 import KERNELS, NAME, not_tried, of_bfloat16, out_of_range, refusal
from gptq_diff.errors import GptqDiffError
from gptq_diff.judged_file import read_judged
from gptq_diff.records import Report, Result, Workaround
from gptq_diff.session.asked import ALL, OFF, Asked, Backend
from gptq_diff.session.workarounds import store_workarounds

LATER = "it takes a load of its own: `--workarounds all` tries it"


def try_bfloat16(asked: Asked, run: RunDir, report: Report, run_again: Callable[[Asked, RunDir], Report]) -> bool:
    """Run what failed for want of range in bfloat16, store what came out or why not; False where nothing failed so.

    run_again: the main job. Without `--workarounds all` nothing is run.
    """
    failing = [r for r in report.results if r.backend != asked.reference and r.status in FAILURES and out_of_range(r)]
    if asked.workarounds == OFF or not failing:
        return False
    backends = {b.name: b for b in asked.backends}
    why = {r.backend: refusal(backends[r.backend].engine, backends[r.backend].kernel) for r in failing}
    if asked.workarounds != ALL:
        why = {name: reason or LATER for name, reason in why.items()}
    for r in failing:
        store_workarounds(run, r.backend, r.prompt, [not_tried(why[r.backend] or "")])
    wanted = [r for r in failing if why[r.backend] is None]
    if wanted:
        for r, found in _run(asked, run, wanted, run_again):
            store_workarounds(run, r.backend, r.prompt, [found])
    return True


def in_bfloat16(backend: Backend) -> Backend:
    """The same in that dtype, under its own name."""
    kernel = KERNELS.get((backend.engine, backend.kernel), backend.kernel)
    return replace(backend, kernel=kernel, dtype="bfloat16")


def _run(
    asked: Asked, run: RunDir, failing: list[Result], run_again: Callable[[Asked, RunDir], Report]
) -> list[tuple[Result, Workaround]]:
    place = run.root / "workarounds" / NAME
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    nested = RunDir.create(place / "run", overwrite=False)
    try:
        again = run_again(_asked(asked, failing), nested)
        results = {(r.backend, r.prompt): r for r in again.results}
        found = [
            (r, of_bfloat16(
                results.get((r.backend, r.prompt)), results.get((again.reference, r.prompt)),
                read_judged(nested.judged(r.backend, r.prompt)), read_judged(run.judged(r.backend, r.prompt)),
            )) for r in failing
        ]  # fmt: skip
    except GptqDiffError as e:
        found = [(r, Workaround.run(NAME, str(e), works=False)) for r in failing]
    finally:
        nested.release()
    shutil.rmtree(place, ignore_errors=True)
    return found


def _asked(asked: Asked, failing: list[Result]) -> Asked:
    names, prompts = {r.backend for r in failing}, {r.prompt for r in failing}
    reference = [b for b in asked.backends if b.name == asked.reference]
    return replace(
        asked, original=None, experiments=OFF, workarounds=OFF, capture="stats", repeats=1,
        backends=(*reference, *(in_bfloat16(b) for b in asked.backends if b.name in names)),
        prompts=tuple(p for p in asked.prompts if p.id in prompts),
    )  # fmt: skip
