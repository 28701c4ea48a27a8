"""report.json: what is written is what is read, it keeps to the published schema, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptq_diff.errors import CaptureError
from gptq_diff.records import Result, SkippedBackend
from gptq_diff.report.json_report import read_report, to_json, write_report
from tests.report.build import HOSTILE, STATUSES, a_report, a_result, an_original

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_makes_the_round_trip(status: str, tmp_path: Path) -> None:
    report = a_report(a_result(status), skipped=(SkippedBackend("hf-fp16", "died", "logs/hf-fp16.log"),))
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("results", [(), *((a_result(s),) for s in STATUSES), tuple(map(a_result, STATUSES))])
def test_reports_keep_to_the_schema(results: tuple[Result, ...]) -> None:
    """docs/report.schema.json, written from the contract."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(to_json(a_report(*results))), SCHEMA)


def test_the_unquantised_model_makes_the_round_trip(tmp_path: Path) -> None:
    """Its figures keep to the schema and read back."""
    skipped = (SkippedBackend("hf-fp16", "died", "logs/hf-fp16.log", ("a line", "the last")),)
    report = a_report(a_result(), an_original(), skipped=skipped)
    jsonschema.validate(json.loads(to_json(report)), SCHEMA)
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_a_report_of_before_can_be_read(tmp_path: Path) -> None:
    """What was added since has the value that stands for its absence."""
    raw = json.loads(to_json(a_report(a_result(), skipped=(SkippedBackend("hf-fp16", "died", "log"),))))
    del raw["original_model"], raw["results"][0]["quantization_error"], raw["skipped_backends"][0]["log_end"]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    report = read_report(tmp_path / "report.json")
    assert (report.original_model, report.results[0].quantization_error) == (None, None)
    assert report.skipped_backends[0].log_end == ()


def test_a_skipped_linear_is_spelt_as_the_contract_does() -> None:
    raw = json.loads(to_json(a_report(a_result("overflow"))))
    assert set(raw["results"][0]["layers"]["skipped"][0]) == {"layer", "reason"}


def test_any_locale_can_print_it(tmp_path: Path) -> None:
    """ASCII alone; what no encoding can write and what a terminal would obey stands as an escape."""
    report = a_report(replace(a_result(), text=HOSTILE + "巴黎\udcff"))
    assert to_json(report).isascii()
    assert "\x1b" not in to_json(report)
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_a_number_that_json_cannot_hold_is_not_written() -> None:
    """Python would write NaN, which no other reader takes."""
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(a_report(replace(a_result(), worst_excess=float("nan"))))


def test_a_missing_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="not finished") as caught:
        read_report(tmp_path / "report.json")
    assert "compare" in (caught.value.hint or "")


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.pop(key)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda raw: raw.update(schema_version=2),
    "no verdict": drop("verdict"),
    "results as text": lambda raw: raw.update(results="abc"),
    "results as numbers": lambda raw: raw.update(results=[1, 2]),
    "tokens as text": lambda raw: raw["results"][0].update(tokens="abc"),
    "a status that is none": lambda raw: raw["results"][0].update(status=None),
    "true for a number": lambda raw: raw["results"][0].update(steps=True),
    "one number of two": lambda raw: raw["results"][0]["first_bad"].update(first_index=[1]),
    "seconds as a list": lambda raw: raw["results"][0].update(seconds=[]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_report_is_refused(damage: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    raw = json.loads(to_json(a_report(a_result("overflow"))))
    damage(raw)
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(CaptureError, match="not a report of this version"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CaptureError, match="not a report of this version"):
        read_report(tmp_path / "report.json")
