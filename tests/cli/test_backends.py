"""`gptq-diff backends`: what can run here, and why not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from gptq_diff.cli import backends as command
from gptq_diff.cli.app import app
from gptq_diff.presets import PRESETS, usable


def invoke(*arguments: str) -> tuple[str, str]:
    """stdout and stderr of a successful call."""
    result = CliRunner().invoke(app, ["backends", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_table_goes_to_stderr_with_every_preset() -> None:
    """A person reads it; stdout is for programs."""
    out, err = invoke()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].split()[:2] == ["backend", "usable"]
    rows = "\n".join(lines[1:]).replace("\n ", " ").splitlines()  # a long cell goes on in the next line
    assert [row.split()[0] for row in rows] == [preset.name for preset in PRESETS]
    for row, preset in zip(rows, PRESETS, strict=True):
        assert row.split()[1] == ("yes" if usable(preset).ok else "no:")
        assert not set(preset.summary.split()) - set(row.split())


def test_json_goes_to_stdout_with_every_field() -> None:
    """Scripts choose backends by it."""
    out, err = invoke("--json")
    assert err == ""
    document = json.loads(out)
    assert document["schema_version"] == 1
    assert document["backends"][0] == {
        "name": "hf-fp32",
        "engine": "transformers",
        "kernel": "exact",
        "dtype": "float32",
        "summary": PRESETS[0].summary,
        "requires": ["torch", "transformers", "safetensors"],
        "route": "",
        "gpu": False,
        "usable": True,
        "reason": "",
    }
    assert [entry["name"] for entry in document["backends"]] == [preset.name for preset in PRESETS]


def test_what_is_missing_is_named_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip is a value with a reason."""
    absent = dataclasses.replace(PRESETS[0], name="absent", requires=("no_such_module",))
    monkeypatch.setattr(command, "PRESETS", (absent,))
    assert "no: Python module not installed: no_such_module" in invoke()[1]
    (entry,) = json.loads(invoke("--json")[0])["backends"]
    assert (entry["usable"], entry["reason"]) == (False, "Python module not installed: no_such_module")
