"""case.toml: read strictly, every mistake with its file and line.

A case file comes with other people's code, like a project's configuration: what can run code or reach out is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptq_diff.cases.case import Case, CaseFault, CaseModel
from gptq_diff.cases.table import NAME, Table
from gptq_diff.errors import UsageError
from gptq_diff.faults.catalogue import KINDS
from gptq_diff.models.options import BuildOptions, GainShift
from gptq_diff.presets import PRESETS
from gptq_diff.prompts import PromptEntry, parse_entry
from gptq_diff.records import Expectation
from gptq_diff.toml_file import TomlFile, read_toml

FILE = "case.toml"
TOP = ("name", "description", "model", "fault", "prompt", "run", "expect")
NUMBERS = ("bits", "group_size", "hidden", "intermediate", "blocks", "heads", "kv_heads", "seed")
SWITCHES = ("sym", "desc_act", "ambiguous_zeros")
MODEL = ("build", "path", "reference_path", "gain_shift", "headroom_bits", "checkpoint_format", *NUMBERS, *SWITCHES)
PATHS = ("path", "reference_path", "headroom_bits")
FAULT = ("kind", "layer", "where", "size", "seed")
RUN = ("backends", "reference", "max_new_tokens", "prefix_cache", "repeats", "teacher_force")
EXPECT = ("backend", "prompt", "status", "layer", "cause", "collapsed")
STATUSES = ("agree", "diverged", "overflow", "nan", "collapsed", "nondeterministic", "incomplete")
CAUSES = (
    "accumulator-overflow", "result-overflow", "nan-weights", "nan-input", "all-reduce", "ambiguous-zero",
    "zero-point-shift", "scale-group", "g-idx-ignored", "nibble-order", "shard-order", "bias", "dtype",
    "race-or-uninitialised", "split-k-noise", "row-path", "outside-linears", "unknown", "clamp",
)  # fmt: skip
MAIN = 'Every case has name, [model], [[prompt]], [run] and [[expect]]; see "Case files" in docs/cases.md.'


def read_case(path: Path) -> Case:
    """The case in that file, or in the case.toml of that directory; UsageError says what is wrong, and where."""
    file = path / FILE if path.is_dir() else path
    found = read_toml(file)
    if found is None:
        raise UsageError(f"{file} does not exist", "give a case's name (gptq-diff cases list), directory or case.toml")
    top = Table(found, (), found.table)
    top.only(TOP)
    name = top.text("name")
    if NAME.fullmatch(name) is None:
        raise top.error("name", f"{name!r} cannot name a folder", "letters, digits, dots, underscores and hyphens only")
    prompts = _prompts(found, top)
    if top.has("fault") and top.table("model").has("reference_path"):
        raise top.error("fault", "[fault] and 'reference_path' exclude each other", "leave one out")
    reference, backends = _backends(top.table("run"))
    run = top.table("run")
    return Case(
        name=name, description=top.text("description", ""), file=file.absolute(),
        digest=hashlib.sha256(found.text.encode()).hexdigest(), model=_model(top.table("model")),
        fault=_fault(top.table("fault")) if top.has("fault") else None, prompts=prompts, backends=backends,
        reference=reference, expect=_expectations(top, {p.id for p in prompts}),
        max_new_tokens=run.whole("max_new_tokens", 8, least=1), repeats=run.whole("repeats", 1, least=1),
        teacher_force=run.flag("teacher_force", default=False), prefix_cache=run.flag("prefix_cache", default=False),
    )  # fmt: skip


def _model(table: Table) -> CaseModel:
    table.only(MODEL)
    if table.has("build") == table.has("path"):
        raise table.error(None, "[model] names either build or path, and one of the two alone", MAIN)
    bits = table.number("headroom_bits") if table.has("headroom_bits") else None
    if table.has("path"):
        extra = next((key for key in MODEL if key not in PATHS and table.has(key)), None)
        if extra is not None:
            raise table.error(extra, f"{extra!r} is an option of build, and this model is a path", "leave it out")
        reference = table.text("reference_path") if table.has("reference_path") else None
        if reference is not None and bits is not None:
            raise table.error("headroom_bits", "'headroom_bits' and 'reference_path' exclude each other", MAIN)
        return CaseModel(path=table.text("path"), reference_path=reference, headroom_bits=bits)
    if table.has("reference_path"):
        raise table.error("reference_path", "'reference_path' stands beside path alone", "leave it out")
    shift = None
    if table.has("gain_shift"):
        inner = table.table("gain_shift")
        inner.only(("block", "group", "gain"))
        block, group, gain = inner.whole("block", least=0), inner.whole("group", least=0), inner.number("gain")
        try:
            shift = GainShift(block, group, gain)
        except UsageError as e:
            raise inner.error("gain", str(e), "for example gain = 4") from e
    format_ = table.text("checkpoint_format") if table.has("checkpoint_format") else None
    given: dict[str, Any] = {key: table.whole(key) for key in NUMBERS if table.has(key)}
    given |= {key: table.flag(key, default=False) for key in SWITCHES if table.has(key)}
    options = BuildOptions(**given, checkpoint_format=format_, gain_shift=shift)
    return CaseModel(build=table.text("build"), options=options, headroom_bits=bits)


def _fault(table: Table) -> CaseFault:
    table.only(FAULT)
    size = table.number("size") if table.has("size") else 1.0
    if not 0.0 <= size <= 1.0:
        raise table.error("size", f"the size {size:g} is not between 0 (mild) and 1 (gross)", "for example size = 0.7")
    return CaseFault(
        kind=table.word("kind", tuple(KINDS)), layer=table.text("layer"),
        where=table.word("where", ("bytes", "kernel")), size=size, seed=table.whole("seed", 0, least=0),
    )  # fmt: skip


def _prompts(file: TomlFile, top: Table) -> tuple[PromptEntry, ...]:
    entries: list[PromptEntry] = []
    for number, value in enumerate(top.tables("prompt"), start=1):
        line = file.line(("prompt", number - 1))
        entry = parse_entry(value.values, number=number, source=str(file.path), line=line)
        if any(entry.id == other.id for other in entries):
            raise entry.error("has the id of another prompt", "give each prompt an id of its own")
        entries.append(entry)
    return tuple(entries)


def _backends(run: Table) -> tuple[str, tuple[str, ...]]:
    run.only(RUN)
    known = tuple(preset.name for preset in PRESETS if preset.name != "hf-original")
    names = run.words("backends", known)
    if len(set(names)) < len(names):
        raise run.error("backends", "a backend is named twice", "name each once")
    return run.word("reference", known, "hf-fp32"), names


def _expectations(top: Table, prompts: set[str]) -> tuple[Expectation, ...]:
    found = []
    for table in top.tables("expect"):
        table.only(EXPECT)
        if not any(table.has(key) for key in EXPECT[2:]):
            raise table.error(None, "an [[expect]] without status, layer, cause or collapsed expects nothing", MAIN)
        known = tuple(preset.name for preset in PRESETS)
        layer = table.text("layer") if table.has("layer") else None
        status = table.word("status", STATUSES) if table.has("status") else None
        cause = table.word("cause", CAUSES) if table.has("cause") else None
        if status == "agree" and (layer or cause):
            raise table.error("status", "what agrees has no bad layer and no cause", "leave them out")
        found.append(Expectation(
            backend=table.word("backend", known) if table.has("backend") else None,
            prompt=table.word("prompt", tuple(sorted(prompts))) if table.has("prompt") else None,
            status=status, layer=layer, cause=cause,
            collapsed=table.flag("collapsed", default=False) if table.has("collapsed") else None, line=table.line,
        ))  # fmt: skip
    _none_twice(top, found)
    return tuple(found)


def _none_twice(top: Table, found: Sequence[Expectation]) -> None:
    pairs: list[tuple[str | None, str | None]] = []
    for number, one in enumerate(found):
        if (one.backend, one.prompt) in pairs:
            raise top.error_at(
                ("expect", number), f"a second [[expect]] for {one.backend or 'every backend'} and "
                f"{one.prompt or 'every prompt'}", "say all of it in one",
            )  # fmt: skip
        pairs.append((one.backend, one.prompt))
