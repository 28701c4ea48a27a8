"""`gptq-diff model build NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from gptq_diff.models.options import BuildOptions
from gptq_diff.text import one_line

if TYPE_CHECKING:
    from rich.console import Console


def build(name: str, options: BuildOptions, out: Path | None, console: Console) -> Path:
    """The model's directory, built now or before; the console (of stderr) shows what is going on."""
    from gptq_diff.models.build import build_model  # imports torch

    with console.status(Text(one_line(f"building {name}")), spinner="dots") as status:
        return build_model(name, options, out, lambda line: status.update(Text(one_line(f"{name}: {line}"))))
