"""The newest release is what pip finds with its own settings; what it does not find is told in its words."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_diff.environments import newest as module
from gptq_diff.environments.newest import newest
from gptq_diff.errors import CannotJudge, UsageError


def wheel(folder: Path, version: str, python: str = ">=3.9") -> None:
    """A wheel of nothing."""
    info = f"toy_engine-{version}.dist-info"
    with zipfile.ZipFile(folder / f"toy_engine-{version}-py3-none-any.whl", "w") as file:
        head = f"Metadata-Version: 2.1\nName: toy-engine\nVersion: {version}\nRequires-Python: {python}\n"
        file.writestr(f"{info}/METADATA", head)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is set to look at, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_the_newest_final_release(index: Path, program: Callable[..., tuple[int, str, str]]) -> None:
    """By version, not by name or date; no release candidate. It is all that is printed."""
    for version in ("0.9.0", "0.10.1", "0.11.0rc1"):
        wheel(index, version)
    assert newest("toy-engine") == "0.10.1"
    assert program("env", "newest", "toy-engine") == (0, "0.10.1\n", "")


def test_a_package_that_is_not_there(index: Path) -> None:
    """pip's own words."""
    with pytest.raises(CannotJudge, match="no release of toy-engine was found: ERROR: No matching distribution"):
        newest("toy-engine")


@pytest.mark.parametrize("name", ["", "a b", "--index-url=x", "vllm==1", "vllm;x", "../x", "vllm-"])
def test_what_is_no_name(name: str) -> None:
    """It would be an option of pip, or a path."""
    with pytest.raises(UsageError, match="no name of a package"):
        newest(name)


def test_an_index_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not waited for without end."""

    def hang(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(module.subprocess, "run", hang)
    with pytest.raises(CannotJudge, match="no answer about vllm within 120 s"):
        newest("vllm")
