"""Packages and recipes for environments that are made in earnest, by the real pip, without a network."""

from __future__ import annotations

import hashlib
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from pathlib import Path

from gptq_diff.environments.recipes import Recipe, Step


def wheel(folder: Path, name: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> None:
    """`name==1.0` with those files, ready for `pip install --find-links folder`."""
    info = f"{name}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in everything.items()]
    everything[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in everything.items():
            archive.writestr(path, text)


def _digest(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def recipe(*steps: Step, name: str = "fictional") -> Recipe:
    """A recipe of these steps for any Python."""
    return Recipe(name, "for tests", "engine", (9, 99), steps)


@dataclass
class Seen:
    """A Watcher that remembers what it was told."""

    begun: list[str] = field(default_factory=list)
    finished: int = 0
    notes: list[str] = field(default_factory=list)

    def begins(self, number: int, of: int, title: str) -> None:
        self.begun.append(f"{number}/{of} {title}")

    def ended(self, seconds: float) -> None:
        assert seconds >= 0
        self.finished += 1

    def note(self, line: str) -> None:
        self.notes.append(line)
