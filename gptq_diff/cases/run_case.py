"""One case from its file to its outcome: build, plant, run the main job, hold it against what is expected."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.cases.backends import Chosen, choose_backends
from gptq_diff.cases.case import Case
from gptq_diff.cases.checkpoints import NotHere, reference_checkpoint, sound_checkpoint, with_headroom
from gptq_diff.cases.expectations import check_expectations, seen_in
from gptq_diff.cases.figures import figures_of
from gptq_diff.cases.key import key_of
from gptq_diff.cases.outcome_file import read_outcome, write_outcome
from gptq_diff.cases.plant import Planted, plant_fault
from gptq_diff.cases.tasks import keep_apart
from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.records import ERROR, FAILED, HELD, SKIPPED, CaseOutcome, Expectation, Report
from gptq_diff.session.asked import OFF, Asked
from gptq_diff.session.main_job import Watcher, run_job
from gptq_diff.session.prepare import PromptSource, prepare


class Silent:
    """Watches and says nothing."""

    def worker(self, backend: str, event: dict[str, Any]) -> None:
        """An event of a backend's worker."""

    def judging(self, done: int, total: int) -> None:
        """That many linears have been judged."""


@dataclass(frozen=True)
class RunSettings:
    """What a case leaves open. timeout: seconds a backend. reuse: take an outcome of the same key that lies there."""

    device: str = ""
    tensor_parallel: int = 1
    timeout: float = 3600.0
    seed: int = 0
    reuse: bool = False
    progress: Callable[[str], None] = lambda line: None  # noqa: ARG005
    watcher: Watcher = field(default_factory=Silent)


def run_case(
    case: Case, *, out: Path, backends: str | None = None, interpreter: str | None = None,
    settings: RunSettings = RunSettings(),
) -> CaseOutcome:  # fmt: skip
    """Run a case below `out`, which is emptied before; its outcome lies there as outcome.json afterwards.

    backends: instead of the case's, as --backends has them. interpreter: for those of them that name none and do not
    run in gptq-diff's own. What goes wrong is an outcome too: ERROR, with the reason.
    """
    started = time.perf_counter()
    keep_apart([case], out)
    outcome = CaseOutcome(case.name, ERROR)
    try:
        chosen = choose_backends(case, backends, interpreter)
        if chosen.reason:
            return _kept(replace(outcome, state=SKIPPED, reason=chosen.reason, skipped=chosen.skipped), out, case)
        sound, reference = sound_checkpoint(case, settings.progress), reference_checkpoint(case)
        models = [sound] if reference is None else [sound, reference]
        key, fingerprint = key_of(case, chosen, models, settings.device, settings.tensor_parallel, settings.seed)
        before = read_outcome(out) if settings.reuse else None
        if before is not None and before.key == key and before.state in (HELD, FAILED):
            return _kept(replace(before, reused=True), out, case)
        _clear(out, case)
        outcome = _run(case, chosen, sound, out, settings, replace(outcome, fingerprint=fingerprint, key=key))
    except NotHere as e:
        outcome = replace(outcome, state=SKIPPED, reason=str(e))
    except GptqDiffError as e:
        outcome = replace(outcome, reason=str(e), usage=isinstance(e, UsageError))
    return _kept(replace(outcome, seconds=round(time.perf_counter() - started, 2)), out, case)


def _clear(out: Path, case: Case) -> None:
    """What an earlier try left goes first, so that nothing of it can be taken for this one's."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copyfile(case.file, out / "case.toml")


def _kept(outcome: CaseOutcome, out: Path, case: Case) -> CaseOutcome:
    """Written down; what did not run leaves nothing else there."""
    if outcome.state == SKIPPED or not out.is_dir():
        _clear(out, case)
    write_outcome(outcome, out)
    return outcome


def _run(
    case: Case, chosen: Chosen, sound: Path, out: Path, settings: RunSettings, outcome: CaseOutcome
) -> CaseOutcome:
    source = PromptSource(str(case.file), None, chat_template=True, entries=case.prompts)
    sound = with_headroom(case, sound, source, out / "model" / "fixed")
    planted = plant_fault(case, sound, source, out / "model")
    reference = reference_checkpoint(case)
    if reference is not None:  # and then nothing is planted by the case: its backends load what is damaged already
        planted = replace(planted, sound=reference)
    run = RunDir.create(out / "run", overwrite=False)
    try:
        report = run_job(_asked(case, chosen, planted, source, settings), run, settings.watcher)
    finally:
        run.release()
    return judged(case, report, run.root, replace(outcome, planted=planted.words, run=str(run.root)))


def _asked(case: Case, chosen: Chosen, planted: Planted, source: PromptSource, settings: RunSettings) -> Asked:
    return prepare(
        planted.loaded, None if planted.sound == planted.loaded else planted.sound, source, io.BytesIO(),
        chosen.names, case.reference, trust_remote_code=False, capture="stats",
        max_new_tokens=case.max_new_tokens, repeats=case.repeats, teacher_force=case.teacher_force,
        device=settings.device, tensor_parallel=settings.tensor_parallel, timeout=settings.timeout,
        seed=settings.seed, experiments=OFF, workarounds=OFF, plant=planted.plant, prefix_cache=case.prefix_cache,
    )  # fmt: skip


def judged(case: Case, report: Report, root: Path, outcome: CaseOutcome) -> CaseOutcome:
    """The outcome of a finished run; ERROR where a backend failed, whatever the others did."""
    seen = seen_in(report)
    checks = check_expectations(_of_these(case, report), seen)
    failed = {s.backend: s.reason for s in report.skipped_backends}
    state = HELD if all(c.held for c in checks) else FAILED
    if failed and all(c.held for c in checks if c.seen is not None):
        state = ERROR
    return replace(
        outcome, state=state, reason="; ".join(f"{name}: {why}" for name, why in failed.items()), checks=checks,
        seen=seen, figures=figures_of(root, report), versions={r.backend: r.versions for r in report.results},
    )  # fmt: skip


def _of_these(case: Case, report: Report) -> tuple[Expectation, ...]:
    """Expectations of what was asked for; those of backends that were not are left out."""
    asked = {r.backend for r in report.results} | {s.backend for s in report.skipped_backends}
    return tuple(e for e in case.expect if e.backend is None or e.backend in asked)
