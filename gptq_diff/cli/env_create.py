"""`gptq-diff env create NAME`: what was asked becomes an order, and its steps lines on the terminal."""

from __future__ import annotations

import shutil
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from gptq_diff.cli.output import console, print_json
from gptq_diff.environments.create import Order, create
from gptq_diff.environments.find import directory_of, python_of, user_folder
from gptq_diff.environments.installers import CPU_INDEX
from gptq_diff.environments.recipes import Recipe, recipe_named
from gptq_diff.errors import UsageError
from gptq_diff.hosts import look_around
from gptq_diff.presets import PRESETS
from gptq_diff.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_PATIENCE = 10.0
"""Seconds within which PyTorch's index must answer to be used."""

_BESIDE_TITLE = 11
"""Columns that the spinner and the time take on a terminal."""


def create_and_show(
    name: str, folder: Path | None, python: str | None, *, uv: bool, torch_url: str | None, as_json: bool, quiet: bool
) -> None:
    """Make it, with progress on stderr; with --json, its place on stdout."""
    recipe = recipe_named(name)
    directory = directory_of(recipe.name, folder or user_folder())
    screen = console(quiet=quiet or as_json)
    with Steps(screen) as steps:
        order = Order(
            recipe, directory, python, uv_here() if uv else None, lambda: torch_url or cpu_index(recipe, steps.note)
        )
        state = create(order, steps)
    if as_json:
        interpreter = str(python_of(directory))
        print_json({"schema_version": 1, "name": recipe.name, "path": str(directory), "python": interpreter})
        return
    size = f", {state.size / 1e9:.1f} GB" if state.size is not None else ""
    screen.print(Text(f"{directory} is ready: {state.seconds:.0f} s{size}"), soft_wrap=True)
    name = next((preset.name for preset in PRESETS if recipe.module in preset.requires), "BACKEND")
    screen.print(Text(f"use it: --backends {name}@{recipe.name if folder is None else directory}"), soft_wrap=True)


def uv_here() -> str:
    """The path of uv; UsageError where PATH has none."""
    found = shutil.which("uv")
    if found is None:
        raise UsageError("--installer uv: there is no uv on PATH", "install it, or leave the option out for pip")
    return found


def cpu_index(recipe: Recipe, note: Callable[[str], None]) -> str | None:
    """PyTorch's index for the CPU, where its builds will do and it can be reached; else None, and a word about it."""
    if look_around().gpu and not recipe.cpu:
        return None
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=_PATIENCE):  # noqa: S310  a constant, https
            return CPU_INDEX
    except OSError as error:  # of which URLError, and those of connections and of TLS, are kinds
        reason = getattr(error, "reason", error)
        note(f"{CPU_INDEX} cannot be reached ({reason}): torch comes from where the installer is set to look")
        return None


class Steps(AbstractContextManager["Steps"]):
    """One line a step with the time it took; on a terminal the time runs."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._live = Progress(
            SpinnerColumn(finished_text="+"), TimeElapsedColumn(), TextColumn("{task.fields[title]}"),
            console=screen, disable=not screen.is_terminal,
        )  # fmt: skip
        self._title = ""

    def __enter__(self) -> Steps:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if kind is KeyboardInterrupt and self._title:
            self.note("what is finished is kept: the same command goes on from there")

    def begins(self, number: int, of: int, title: str) -> None:
        """Show that the step has begun."""
        self._title = f"{number}/{of} {one_line(title)}"
        # Cut here: Rich would take the room from the spinner and the time first.
        self._task = self._live.add_task("", total=1, title=one_line(self._title, self._screen.width - _BESIDE_TITLE))

    def ended(self, seconds: float) -> None:
        """Stop its clock."""
        if self._screen.is_terminal:
            self._live.update(self._task, completed=1)
        else:
            self._screen.print(Text(f"{self._title}: {seconds:.0f} s"))

    def note(self, line: str) -> None:
        """Show a line of its own."""
        self._screen.print(Text(one_line(line)), soft_wrap=True)
