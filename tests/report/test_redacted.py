"""Redacted reports: built from allowed fields alone, they keep the schema, every status and every figure."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptq_diff.between_file import between_file, write_between
from gptq_diff.judged_file import write_judged
from gptq_diff.records import (
    Between,
    Experiment,
    Finding,
    Headroom,
    IntervalCount,
    PromptInfo,
    Report,
    RowMap,
    RowRange,
    SkippedBackend,
    SkippedLayer,
    Sweep,
    SweepRange,
    Workaround,
)
from gptq_diff.report.cleaned import cleaned
from gptq_diff.report.json_report import to_json, write_report
from gptq_diff.report.junit import junit
from gptq_diff.report.redacted import redacted
from gptq_diff.report.redacted_run import write_redacted
from gptq_diff.report.renderings import RENDERINGS
from gptq_diff.rows_file import rows_file, write_rows
from tests.report.build import LAYERS, STATUSES, a_report, a_result, an_original, judgements
from tests.report.test_json_report import SCHEMA

SECRET = "zqxvokumel"
"""A word that is in no source of this package."""


def full_report(status: str = "overflow") -> Report:
    """Every field of every record has something in it."""
    finding = Finding("accumulator-overflow", 0.9, ("2 outputs are lost",), LAYERS[5], "a sum overflows")
    ranges = (RowRange(1, 50, "exllama", "overflow", 2, None),)
    result = replace(
        a_result(status), findings=(finding,), workarounds=(Workaround.run("padding", "51 rows", works=True),),
        experiments=(Experiment("row-sweep", LAYERS[5], 0, "rows", {"rows": 1.0}, ("it flips",), finding, ranges),
                     Experiment("not-run", LAYERS[5], 0, "rows", {}, ("not all were made: x",))),
        intervals=IntervalCount(3, (SkippedLayer(LAYERS[1], "its input was already NaN or infinite"),), 0.5),
    )  # fmt: skip
    report = a_report(
        a_result("agree", "hf-fp32"), result, an_original("long"),
        skipped=(SkippedBackend("vllm", "timed out after 5 s", "logs/vllm.log", ("a line",)),),
    )  # fmt: skip
    return replace(
        report, reference_model=report.model, original_model=a_report(a_result(), an_original()).original_model,
        sweeps=(Sweep("sim-gptq", "q", 1, 64, 1, (SweepRange(1, 50, "overflow", LAYERS[5]),)),),
        prompts=(*report.prompts, PromptInfo("q-t001", 1, "0" * 64), PromptInfo("q-t064", 64, "0" * 64)),
        headroom=(Headroom("sim-gptq", True, "lane", 1.0, LAYERS[5], "short", 0, 0, 1, 2, 3.0, 4.0, 12.0, 4),),
        environment={**report.environment, "HF_TOKEN": SECRET},
    )  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_stays(status: str) -> None:
    """And what was redacted is a report that keeps to the schema."""
    report = full_report(status)
    shared = redacted(report)
    jsonschema.validate(json.loads(to_json(shared)), SCHEMA)
    assert [r.status for r in shared.results] == [r.status for r in report.results]
    assert shared.verdict.status == report.verdict.status
    assert shared.verdict.summary.replace("p1", "short") == report.verdict.summary


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in strings(part)]
    if isinstance(value, tuple):
        return [s for part in value for s in strings(part)]
    if is_dataclass(value):
        return [s for f in fields(value) for s in strings(getattr(value, f.name))]
    return []


@pytest.mark.parametrize(
    "spoil", [lambda text: SECRET, lambda text: f"{text} {SECRET}", lambda text: f"{SECRET}.{text}"]
)
@pytest.mark.parametrize("include", [True, False])
def test_no_string_of_a_report_passes_unseen(spoil: Any, include: bool) -> None:
    """A secret in place of, behind, or before every string of the record at once: it is nowhere afterwards.

    With --include-prompts prompts' ids and texts stay, which is what it is for.
    """
    spoilt = cleaned(full_report(), spoil)
    shared = redacted(spoilt, include_prompts=include)
    if include:
        names = {p.id for p in shared.prompts} | {s.prompt for s in shared.sweeps}
        shared = cleaned(shared, lambda text: "" if text in names else text)
        shared = replace(shared, results=tuple(replace(r, text=None) for r in shared.results))
        left = [s for s in strings(shared) if SECRET in s.replace(spoil("short"), "")]
    else:
        left = [s for s in strings(shared) if SECRET in s]
    assert left == []


def test_figures_stay_and_answers_go() -> None:
    shared = redacted(full_report())
    result = shared.results[1]
    assert (result.text, result.tokens, result.collapse_token) == (None, (), 0)
    assert result.first_bad == full_report().results[1].first_bad
    assert result.headroom_bits == {LAYERS[0]: 2.5}
    assert result.experiments[1].evidence == ("not all were made",)
    assert shared.skipped_backends == (SkippedBackend("vllm", "timed out after 5 s", ""),)
    assert shared.headroom[0].prompt == "p1"


def test_swept_prompts_keep_their_lengths() -> None:
    shared = redacted(full_report())
    assert [p.id for p in shared.prompts] == ["p1", "p2", "p3-t001", "p3-t064"]
    assert shared.sweeps[0].prompt == "p3"


def test_prompts_and_answers_when_asked_for() -> None:
    shared = redacted(full_report(), include_prompts=True)
    assert shared.results[1].text == "!!!!"
    assert shared.prompts[0].id == "short"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/x/.cache/huggingface/hub/models--Qwen--Qwen2.5-32B-Instruct-GPTQ-Int4/snapshots/abc",
         "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4"),
        (f"/hub/models--{SECRET}--a/snapshots/abc", "a checkpoint without a public name"),
        (f"/home/{SECRET}/m", "a checkpoint without a public name"),
    ],
)  # fmt: skip
def test_models_by_their_public_name(path: str, name: str) -> None:
    """Of publishers who are known; a repository of anybody else may be private."""
    report = a_report(a_result())
    shared = redacted(replace(report, model=replace(report.model, path=path)))
    assert shared.model.path == name
    assert shared.model.fingerprint == "ab" * 32


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_name_or_path": "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"}, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
        ({"_name_or_path": f"{SECRET}/model"}, "a checkpoint without a public name"),
        ({"gptq_diff": {"build": "smollm2", "recipe": 1, "options": {"bits": 4, "sym": True, "gain_shift": "11:19:4"}}},
         "gptq-diff model build smollm2 --bits 4 --sym --gain-shift 11:19:4"),
        ({"gptq_diff": {"build": "smollm2", "options": {"bits": SECRET}}}, "a checkpoint without a public name"),
        ({"gptq_diff": {"build": SECRET, "options": {}}}, "a checkpoint without a public name"),
        ([], "a checkpoint without a public name"),
    ],
)  # fmt: skip
def test_models_by_their_config(config: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = a_report(a_result())
    assert redacted(replace(report, model=replace(report.model, path=str(tmp_path)))).model.path == name


def test_the_files_of_a_run(tmp_path: Path) -> None:
    """Judgements and intervals are copied field by field; a prompt's text and figures of its rows are not, unasked."""
    root, to, asked = (tmp_path / n for n in ("run", "to", "asked"))
    for place in (root, to, asked):
        place.mkdir()
    write_report(full_report(), root / "report.json")
    bad = [replace(j, path=SECRET, layer=f"model.{SECRET}") if j.index == 2 else j for j in judgements()]
    write_judged(root / "judged" / "sim-exllama" / "short.jsonl", bad)
    interval = replace(judgements()[5], part="norm", path="norm", cause="outside-linears")
    between = Between((interval,), (Finding("x", 1.0, (SECRET,), None),), {"all": SECRET})
    write_between(between_file(root, "sim-exllama", "short"), between)
    write_rows(rows_file(root, "sim-exllama", "short"), RowMap((SECRET,), ((0, 0, 0),), "AAA=", "AAA=", "AAA=", ()))
    (root / "prompts.json").write_text(json.dumps([{"id": "short", "token_ids": [1], "text": "q", "sha256": "0"}]))
    shared = write_redacted(root, to)
    names = sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file())
    assert names == ["judged/sim-exllama/p1.between.json", "judged/sim-exllama/p1.jsonl", "report.json"]
    texts = [p.read_text() for p in to.rglob("*") if p.is_file()]
    texts += [render(shared, to) for render in RENDERINGS.values()] + [junit(shared)]
    assert [t for t in texts if SECRET in t] == []
    write_redacted(root, asked, include_prompts=True)
    assert (asked / "prompts.json").exists()
    assert (asked / "judged" / "sim-exllama" / "short.rows.json").exists()
    assert SECRET not in (asked / "judged" / "sim-exllama" / "short.rows.json").read_text()
