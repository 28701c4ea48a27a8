"""What a buildable model is: it fills in its defaults, then writes one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Protocol

from gptq_diff.models.options import BuildOptions

Progress = Callable[[str], None]


class Recipe(Protocol):
    """One NAME of `model build`."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def version(self) -> int:
        """Raised whenever the same options give other bytes, so that a cached model is not reused."""

    def resolve(self, options: BuildOptions) -> BuildOptions:
        """The options with this model's defaults filled in; UsageError for those it cannot take."""

    def write(self, directory: Path, options: BuildOptions, sources: Path, progress: Progress) -> None:
        """Write the checkpoint for resolved options; downloads are kept in `sources`."""
