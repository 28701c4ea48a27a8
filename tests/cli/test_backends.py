"""`gptq-diff backends`: what can run here, and why not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys

import pytest
from typer.testing import CliRunner

from gptq_diff import hosts
from gptq_diff.cli.app import app
from gptq_diff.environments.find import user_folder
from gptq_diff.hosts import look_around
from gptq_diff.presets import PRESETS
from tests.environments.made import make_environment


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
    starts = [line for line in lines[1:] if not line.startswith(" ")]  # a long cell goes on in the next line
    assert [row.split()[0] for row in starts] == [preset.name for preset in PRESETS]
    for row, preset in zip(starts, PRESETS, strict=True):
        assert row.split()[1] == ("yes" if look_around().host_of(preset).support.ok else "no")
        assert preset.summary.split()[0] in row.split()


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
        "python": sys.executable,
        "environment": None,
        "versions": {
            "transformers": importlib.metadata.version("transformers"),
            "torch": importlib.metadata.version("torch"),
        },
    }
    assert [entry["name"] for entry in document["backends"]] == [preset.name for preset in PRESETS]


def test_what_is_missing_is_named_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip is a value with a reason."""
    absent = dataclasses.replace(PRESETS[0], name="absent", requires=("no_such_module",))
    monkeypatch.setattr(hosts, "PRESETS", (absent,))
    row = invoke()[1].splitlines()[1]
    assert row.startswith("absent   no      Python module not installed:")
    (entry,) = json.loads(invoke("--json")[0])["backends"]
    assert (entry["usable"], entry["reason"]) == (False, "Python module not installed: no_such_module")


def test_an_environment_is_shown_with_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreter and versions of a preset that does not run in our own."""
    held = dataclasses.replace(PRESETS[0], name="held", requires=("auto_gptq",))
    monkeypatch.setattr(hosts, "PRESETS", (held,))
    versions = {"auto-gptq": "0.7.1", "torch": "2.13.0+cpu"}
    directory = make_environment(user_folder(), "auto-gptq", versions, ("auto_gptq",))
    assert "auto-gptq: auto-gptq 0.7.1, torch 2.13.0+cpu" in " ".join(invoke()[1].split())
    (entry,) = json.loads(invoke("--json")[0])["backends"]
    assert (entry["usable"], entry["environment"]) == (True, "auto-gptq")
    assert (entry["python"], entry["versions"]) == (str(directory / "bin" / "python"), versions)
