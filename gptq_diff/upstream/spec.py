"""What the compiling process is told, as JSON, and what it says when it has ended. Standard library alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptq_diff.whole_file import write_whole


@dataclass(frozen=True)
class CompileSpec:
    """One kernel to compile.

    name: of the library. sources: files, absolute, ours among them. include: folders. defines: for every compiler;
    cuda_flags: for nvcc. ops: namespace below torch.ops that must be there afterwards, with the operations.
    arch: compute capability, as 9.0, or "" for that of the GPU here. digest: of the sources; recipe: of all that
    decides what comes out. target: folder that gets a folder for torch, CUDA and architecture.
    """

    package: str
    version: str
    name: str
    sources: tuple[str, ...]
    include: tuple[str, ...]
    defines: tuple[str, ...]
    cuda_flags: tuple[str, ...]
    ops: tuple[str, ...]
    arch: str
    digest: str
    recipe: str
    target: str

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> CompileSpec:
        """The spec in that file."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
        return CompileSpec(**values)


@dataclass(frozen=True)
class Compiled:
    """What came of it. folder: of the kernel, None where it failed; failure: then why. cached: it was there before."""

    folder: str | None
    failure: str | None
    hint: str | None
    cached: bool

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> Compiled | None:
        """What the process said; None where it ended without a word."""
        try:
            return Compiled(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
