"""Making a bundle of a finished run: reduce, redact, render again, pack. The whole idea in `make_bundle`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gptq_diff.bundle.archive import packed
from gptq_diff.bundle.issue import Material, issue
from gptq_diff.bundle.layout import ENVIRONMENT, MAX_SIZE, PROMPTS
from gptq_diff.bundle.repro import Repro
from gptq_diff.bundle.rows import SavedRows, saved_rows
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import GptqDiffError, NothingFound, UsageError
from gptq_diff.reduce.record import FOLDER, Reduced, read_reduced
from gptq_diff.report import redacted_facts as facts
from gptq_diff.report.json_report import read_report, to_json
from gptq_diff.report.redacted import Redaction
from gptq_diff.report.redacted_reasons import layer_reason
from gptq_diff.report.redacted_run import write_redacted
from gptq_diff.report.renderings import RENDERINGS
from gptq_diff.session.opened import open_run
from gptq_diff.session.reduce_run import Wanted, reduce_run


@dataclass(frozen=True)
class Options:
    """include_prompts: prompts and answers come along. max_size: bytes of the zip at most.

    model, reference_model: where the checkpoints are, if they have moved. simulate: reduce on the simulation alone.
    rows: captured rows come along.
    """

    include_prompts: bool = False
    max_size: int = MAX_SIZE
    model: str | None = None
    reference_model: str | None = None
    simulate: bool = False
    rows: bool = True


@dataclass(frozen=True)
class Bundle:
    """data: the zip. files: sizes in bytes by name, manifest.json left out. no_repro: why it has no repro.py."""

    data: bytes
    files: dict[str, int]
    no_repro: str


def make_bundle(root: Path, options: Options, say: Callable[[str], None]) -> Bundle:
    """The bundle of a finished run; `reduce` is run first where there is no repro yet.

    NothingFound for a run in which all is right; UsageError where it would be larger than asked for.
    """
    run = RunDir.open_finished(root)
    report = read_report(root / "report.json")
    if report.verdict.status == "agree" and not report.skipped_backends:
        raise NothingFound(
            "nothing to hand over: every backend agrees", "`gptq-diff report --redact` shares the report"
        )
    found, no_repro = _reduced(root, options, say)
    names = Redaction.of(report, include_prompts=options.include_prompts)
    rows = saved_rows(root, report, _checkpoint(root, options)) if options.rows else {}
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="gptq-diff-bundle-") as place:
        shared = write_redacted(root, Path(place), include_prompts=options.include_prompts)
        for name, render in RENDERINGS.items():
            files[name] = render(shared, Path(place)).encode()
    prompts = run.prompts() if options.include_prompts else ()
    if prompts:
        asked = [
            {"id": p.id, "token_ids": list(p.token_ids)} for p in prompts
        ]  # a --prompt-file; report.html has texts
        files[PROMPTS] = (json.dumps(asked, indent=1) + "\n").encode()
    files["report.json"] = (to_json(shared) + "\n").encode()
    files[ENVIRONMENT] = _environment(shared.environment, {r.backend: r.versions for r in shared.results})
    repro = None if found is None else _repro(root / FOLDER, found)
    no_repro = "" if found is not None else layer_reason(no_repro, names.words)
    if repro is not None and found is not None:
        files["repro.py"] = repro.text.encode()
        if found.data:
            files["repro.safetensors"] = (root / FOLDER / found.data).read_bytes()
    saved = {f"rows/{names.backend(b)}/{names.prompt(p)}.safetensors": kept for (b, p), kept in rows.items()}
    files |= {name: kept.data for name, kept in saved.items()}
    told = {name: (kept.rows, kept.note) for name, kept in saved.items()}
    failing = next((p.token_ids for p in prompts if p.id == report.verdict.prompt), ())
    material = Material(shared, repro, no_repro, told, prompts=options.include_prompts, token_ids=failing)
    files["ISSUE.md"] = issue(material).encode()
    return _within(files, saved, options.max_size, no_repro)


def _within(files: Mapping[str, bytes], rows: Mapping[str, SavedRows], limit: int, no_repro: str) -> Bundle:
    data = packed(files)
    if len(data) > limit:
        spent = sum(len(kept.data) for kept in rows.values())
        raise UsageError(
            f"the bundle would take {len(data):,} bytes, {spent:,} of them captured rows, and may take {limit:,}",
            "give --max-size or --no-rows, or bundle a run with fewer prompts",
        )
    return Bundle(data, {name: len(content) for name, content in sorted(files.items())}, no_repro)


def _reduced(root: Path, options: Options, say: Callable[[str], None]) -> tuple[Reduced | None, str]:
    """What `reduce` found, now or before; else None and why."""
    found = read_reduced(root / FOLDER)
    if found is not None:
        return found, ""
    say("reducing the failing call first")
    wanted = Wanted(model=options.model, reference_model=options.reference_model, simulate=options.simulate)
    try:
        return reduce_run(root, wanted, say), ""
    except UsageError:
        raise
    except GptqDiffError as e:
        return None, str(e)


def _checkpoint(root: Path, options: Options) -> Checkpoint | None:
    """What the judge reads, if it is here."""
    judge = open_run(root, options.model, options.reference_model).judge
    return judge if isinstance(judge, Checkpoint) else None


def _repro(place: Path, found: Reduced) -> Repro:
    """The script with what an engine told of itself held to the forms that versions and GPUs have."""
    text = (place / found.script).read_text(encoding="utf-8")
    seen = facts.versions(found.seen_on)
    if "gpu" in found.seen_on and (gpu := facts.gpu(found.seen_on["gpu"])) is not None:
        seen["gpu"] = gpu
    for name, value in found.seen_on.items():
        for written in (value, re.sub(r"[^A-Za-z0-9 .,:;()/+*<>=_-]", "", value)):
            if written and written != seen.get(name):
                text = text.replace(written, seen.get(name, "(withheld)"))
    return Repro(
        text, found.live, seen, found.captured, found.shape, found.inputs, (found.failing.output, found.failing.exact),
        (found.passing.output, found.passing.exact), found.data,
    )  # fmt: skip


def _environment(machine: Mapping[str, str | None], engines: Mapping[str, Mapping[str, str]]) -> bytes:
    value = {"machine": dict(machine), "backends": {name: dict(versions) for name, versions in engines.items()}}
    return (json.dumps(value, indent=1) + "\n").encode()
