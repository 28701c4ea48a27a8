"""Which captured call of a run `reduce` takes: the first bad linear of the verdict, or of what the user names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import STEPS_AFTER
from gptq_diff.compare.judge_run import Key, open_captures
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.errors import CannotJudge, GptqDiffError, NothingFound, UsageError
from gptq_diff.judged_file import read_judged
from gptq_diff.presets import parse_backends
from gptq_diff.records import INTERVALS, Judgement, Report
from gptq_diff.report.json_report import read_report
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.finished import finished_captures

if TYPE_CHECKING:
    from gptq_diff.compare.judge import CapturedCall


@dataclass(frozen=True)
class Failing:
    """The call. named: --backend as it was given, with its interpreter; None where the run's own is taken."""

    backend: str
    prompt: str
    judgement: Judgement
    engine: str
    named: str | None


def choose(run: RunDir, record: RunRecord, backend: str | None, prompt: str | None, layer: str | None) -> Failing:
    """The first bad call; NothingFound where there is none, UsageError for a name that the run does not know."""
    name = None if backend is None else parse_backends(backend)[0].preset.name
    keys = finished_captures(record, run)
    _check("backend", name, [b for b, _ in keys])
    _check("prompt", prompt, [p for _, p in keys])
    _check("layer", layer, list(record.quantized))
    report = _report(run)
    wanted = [k for k in _worst_first(report, keys) if name in (None, k[0]) and prompt in (None, k[1])]
    outside = None
    for key in wanted:
        judgement = _first_bad(run, key, layer)
        outside = outside or _outside(report, key, judgement, layer)
        if judgement is not None and _outside(report, key, judgement, layer) is None:
            blameless = _blameless(judgement)
            if blameless is not None:
                outside = blameless
                continue
            engine = next(b.engine for b in record.backends if b.name == key[0])
            return Failing(*key, judgement, engine, backend)
    where = f"{layer} is" if layer else "every linear is"
    raise NothingFound(f"nothing to reduce: {outside}" if outside else f"nothing to reduce: {where} right")


def captured_call(run: RunDir, failing: Failing) -> CapturedCall:
    """Its tensors; CannotJudge where they were not kept."""
    key, j = (failing.backend, failing.prompt), failing.judgement
    captured = open_captures(run, [key], "")[key]
    calls = [c for c in captured.calls(j.layer) if c.step == j.step and c.part == j.part]
    if not calls:
        raise CannotJudge(f"the tensors of {j.layer} were not kept (--capture)", "run again with --capture full")
    return calls[0]


def _check(what: str, name: str | None, known: list[str]) -> None:
    if name is not None and name not in known:
        raise UsageError(f"this run has no {what} {name}", f"it has {', '.join(dict.fromkeys(known))}"[:300])


def _report(run: RunDir) -> Report | None:
    """None for a run that was cut short before its report."""
    try:
        return read_report(run.root / "report.json")
    except GptqDiffError:
        return None


def _worst_first(report: Report | None, keys: list[Key]) -> Iterator[Key]:
    verdict = None if report is None else (report.verdict.backend, report.verdict.prompt)
    yield from (k for k in keys if k == verdict)
    yield from (k for k in keys if k != verdict)


def _first_bad(run: RunDir, key: Key, layer: str | None) -> Judgement | None:
    found = read_judged(run.judged(*key))
    return next((j for j in found if j.kind in BAD_KINDS and layer in (None, j.layer)), None)


def _blameless(j: Judgement) -> str | None:
    """Why that fault is not the product's; None where it is."""
    if j.path in STEPS_AFTER:
        return f"{j.layer}: the first fault is the step {j.path} after its kernel, no linear's product"
    if j.cause == "result-overflow":
        return f"the exact answer of {j.layer} is itself beyond float16, which no kernel can mend"
    if j.cause == "nan-weights":
        return f"the scales of {j.layer} are themselves NaN or infinite: the checkpoint is at fault, no kernel"
    return None


def _outside(report: Report | None, key: Key, judgement: Judgement | None, layer: str | None) -> str | None:
    """What breaks between linears before any of them does; None where nothing does, or one linear was asked for."""
    if report is None or layer is not None:
        return None
    bad = next((r.first_bad for r in report.results if (r.backend, r.prompt) == key), None)
    if bad is None or bad.path not in INTERVALS:
        return None
    if judgement is not None and (judgement.step, judgement.index) < (bad.step, bad.index):
        return None
    return f"on {key[0]} the first fault is the {bad.path} before {bad.layer}, no linear's product"
