"""The second half of the main job: judge what was captured and say what it means. Works on a finished run, anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Callable

import gptq_diff
from gptq_diff.between_file import between_file, read_between
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader
from gptq_diff.compare.judge_run import Key, judge_captures, store_rows
from gptq_diff.compare.results import BackendRun, make_result, verdict
from gptq_diff.diagnosed_file import read_findings
from gptq_diff.judged_file import read_judged, write_judged
from gptq_diff.records import Between, Judgement, PromptInfo, Report, Result, SkippedBackend
from gptq_diff.report.cleaned import cleaned
from gptq_diff.session.asked import BackendRecord, RunRecord
from gptq_diff.session.between_run import with_intervals
from gptq_diff.session.decode import Decoder
from gptq_diff.session.determinism import settle
from gptq_diff.session.experiments_store import with_experiments
from gptq_diff.session.finished import finished_captures, open_finished
from gptq_diff.session.headroom_file import headroom_file, nearest_of_all, noted, read_headroom
from gptq_diff.session.sweep import sweeps
from gptq_diff.session.workarounds import with_workarounds

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class Judged:
    """How many kernel calls were judged, how many there were, and what it took, in seconds by backend."""

    fresh: int
    calls: int
    seconds: dict[str, float]

    def noted(self, record: RunRecord) -> RunRecord:
        """The record with these seconds where it has none yet: judging the same data again gives the same report."""
        took = {name: {"judge": round(seconds, 3)} for name, seconds in self.seconds.items() if seconds > 0}
        backends = (replace(b, seconds={**took.get(b.name, {}), **b.seconds}) for b in record.backends)
        return replace(record, backends=tuple(backends))


def judge_run(
    run: RunDir, record: RunRecord, keys: Sequence[Key], judge: Checkpoint, loaded: Checkpoint,
    progress: Callable[[int, int], None], known: Mapping[Key, float] = MappingProxyType({}),
) -> Judged:  # fmt: skip
    """Judge every kept tensor of those captures and store the judgements; a pruned capture keeps those it had.

    known: captures that have just been judged, with the seconds that it took.
    """
    captures = open_finished(run, record, keys)
    judged = judge_captures({k: c for k, c in captures.items() if k not in known}, judge, loaded, progress)
    for key, fresh in judged.items():
        merged = {(j.step, j.stored): j for j in read_judged(run.judged(*key))}
        merged.update({(j.step, j.stored): j for j in fresh})
        write_judged(run.judged(*key), sorted(merged.values(), key=lambda j: (j.step, j.index, len(j.part), j.part)))
        store_rows(run, key, captures[key])
    calls = sum(len(places) for captured in captures.values() for places in captured.places.values())
    before = sum(len(read_judged(run.judged(*key))) for key in captures if key in known)
    seconds: dict[str, float] = {}
    for (backend, prompt), captured in captures.items():
        took = known.get((backend, prompt), captured.seconds)
        seconds[backend] = seconds.get(backend, 0.0) + took
        captured.reader.close()
    return Judged(sum(map(len, judged.values())) + before, calls, seconds)


def report_run(run: RunDir, record: RunRecord, decoder: Decoder) -> Report:
    """The report of a judged run; needs no weights."""
    prompts = run.prompts()
    readers = {key: run.reader(*key) for key in finished_captures(record, run)}
    measured = {key: read_headroom(headroom_file(run, key)) for key in readers}
    backends = {b.name: b for b in record.backends}
    results = []
    for (backend, prompt), reader in readers.items():
        is_reference = backend == record.reference
        reference = None if is_reference else readers.get((record.reference, prompt))
        judgements = read_judged(run.judged(backend, prompt))
        between = read_between(between_file(run.root, backend, prompt))
        result = _result(
            record, backends[backend], reader, reference, judgements, between, decoder, is_reference=is_reference
        )  # fmt: skip
        found = read_findings(run.findings(backend, prompt))
        if found is not None:
            result = replace(result, findings=found)
        result = with_intervals(result, between)
        result = with_experiments(noted(result, measured[backend, prompt]), run)
        results.append(settle(result, run, backends[backend].finished, judgements))
    results = with_workarounds(results, run, record.reference)
    for reader in readers.values():
        reader.close()
    infos = tuple(PromptInfo(p.id, p.tokens, p.sha256) for p in prompts)
    return cleaned(Report(
        schema_version=1, gptq_diff=gptq_diff.__version__, created=record.created, model=record.model,
        reference_model=record.reference_model, environment=record.environment, reference=record.reference,
        prompts=infos,
        verdict=verdict(results, len(record.quantized)), results=tuple(results),
        skipped_backends=tuple(
            SkippedBackend(b.name, b.failure, b.log, b.log_end) for b in record.backends if b.failure is not None
        ),
        left_out=record.left_out, allow_skip=record.allow_skip, original_model=record.original,
        sweeps=() if record.sweep is None else sweeps(results, infos, record.sweep),
        headroom=nearest_of_all(list(measured.values())),
    ))  # fmt: skip


def _result(
    record: RunRecord, backend: BackendRecord, reader: CaptureReader, reference: CaptureReader | None,
    judgements: list[Judgement], between: Between | None, decoder: Decoder, *, is_reference: bool,
) -> Result:  # fmt: skip
    about = BackendRun(
        backend.engine, backend.kernel, backend.versions, backend.seconds,
        backend.memory.rss, backend.memory.private, backend.memory.gpu,
    )  # fmt: skip
    text = decoder.text(reader.manifest.tokens)
    return make_result(
        reader, reference, judgements, record.quantized, about, text, record.not_read, is_reference=is_reference,
        intervals=() if between is None else between.judgements,
    )  # fmt: skip
