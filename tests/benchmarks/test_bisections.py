"""The bisections that are committed as data, and what docs/bisect.md says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.bisection.search import Found, Verdict, search

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "benchmarks" / "results" / "bisect").glob("*.json"))
PAGE = (REPOSITORY / "docs" / "bisect.md").read_text(encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_there_are_some() -> None:
    """One that found a change, and one that found none."""
    found = [read(file)["found"] for file in FILES]
    assert any(one["first_bad"] for one in found) and any(one["nothing"] for one in found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_verdicts_lead_to_what_was_found(file: Path) -> None:
    """The search of today, given the verdicts of then, finds the same and asks for no others."""
    told = read(file)
    known = {trial["version"]: Verdict(trial["verdict"], trial["said"]) for trial in told["trials"]}

    def judge(version: str) -> Verdict:
        raise AssertionError(f"{version} was never tried")

    expected = Found(**{**told["found"], "between": tuple(told["found"]["between"])})
    assert search(told["versions"], judge, known) == expected


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_says_what_the_data_say(file: Path) -> None:
    """Ends, case, and every release that was tried."""
    told = read(file)
    asked = f"--good {told['good']} --bad {told['bad']} --case {told['case']}"
    if told["backends"] is not None:
        asked += f" --backends {told['backends']}"
    assert asked in PAGE.replace("\n", " ")
    found = told["found"]
    if found["nothing"] is not None:
        assert found["nothing"] in PAGE.replace("\n", " ")
        return
    assert f"last good {found['last_good']}, first bad {found['first_bad']}" in PAGE.replace("\n", " ")
    for trial in told["trials"]:
        assert f"| {trial['version']} | {trial['verdict']} |" in PAGE


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_folder_is_named(file: Path) -> None:
    """They are data for everybody."""
    assert "directory" not in read(file)
    assert "/root" not in file.read_text() and "/tmp" not in file.read_text()
