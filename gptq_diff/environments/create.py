"""Make an environment, step by step, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable, Protocol

from gptq_diff.environments.find import python_of, site_packages
from gptq_diff.environments.installers import Installer, make_virtual_environment
from gptq_diff.environments.lock import held
from gptq_diff.environments.pythons import find_python, probe
from gptq_diff.environments.recipes import Recipe, Step
from gptq_diff.environments.run_step import run_step
from gptq_diff.environments.sound import sweep
from gptq_diff.environments.state import LOG_FILE, STATE_FILE, State, state_of
from gptq_diff.errors import GptqDiffError, UsageError


class Watcher(Protocol):
    """Is told what goes on."""

    def begins(self, number: int, of: int, title: str) -> None:
        """That step has begun."""

    def ended(self, seconds: float) -> None:
        """The step that began last is finished."""

    def note(self, line: str) -> None:
        """Something that a person should know."""


def nowhere_else() -> None:
    """No index beside those that the installer is set to use."""


@dataclass(frozen=True)
class Order:
    """What was asked of `env create`, checked.

    directory: the environment's own. python: --python or None. uv: path of uv where it is to install, or None for pip.
    torch_url: called once torch is to be installed: index to find it on beside the installer's own, or None.
    """

    recipe: Recipe
    directory: Path
    python: str | None = None
    uv: str | None = None
    torch_url: Callable[[], str | None] = nowhere_else


def create(order: Order, watcher: Watcher) -> State:
    """Make the environment, or finish one that was begun; one that is finished is left alone.

    UsageError for a directory that is not ours or holds something else, and for a Python that cannot be used;
    GptqDiffError when a step fails, or another gptq-diff is at work there. What was finished is kept either way.
    """
    missing = [program for program in order.recipe.programs if shutil.which(program) is None]
    if missing:
        raise UsageError(
            f"{order.recipe.name} needs {', '.join(missing)}, which is not on PATH", "install it (the package g++)"
        )
    left_behind = "waiting for an installer that a killed gptq-diff left behind"
    with held(order.directory, lambda: watcher.note(left_behind)) as lock:
        state = _begun(order)
        return state if state.ready else _Making(order, state, watcher, lock).finish()


def _begun(order: Order) -> State:
    """The state to go on from, on disk already; checks that the directory may be written to."""
    directory, recipe = order.directory, order.recipe
    state = state_of(directory)
    if state is None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(
                f"{directory} exists and is no environment of gptq-diff's", "move it away, or give another --dir"
            )
        python = find_python(recipe, order.python)
        directory.mkdir(parents=True, exist_ok=True)
        state = State(recipe.name, recipe.digest, python.path, steps=len(recipe.steps) + 1)
        state.write(directory)
        return state
    if state.digest != recipe.digest:
        raise UsageError(
            f"{directory} was made from another version of the recipe {state.recipe}",
            f"gptq-diff env remove {directory.name}, with the same --dir if you gave one, then create it again",
        )
    if order.python is not None and not state.ready:
        asked = find_python(recipe, order.python)
        if asked.path != state.python:
            raise UsageError(
                f"{directory} was begun with {state.python}, not with {asked.path}",
                f"leave out --python, or gptq-diff env remove {directory.name} first",
            )
    return state


class _Making:
    """One attempt at an environment: the steps that are left."""

    def __init__(self, order: Order, state: State, watcher: Watcher, lock: int) -> None:
        self._order = order
        self._state = state
        self._watcher = watcher
        self._lock = lock
        self._log = order.directory / LOG_FILE

    def finish(self) -> State:
        """Everything that is left, recorded step by step."""
        if self._state.done:
            self._check_what_is_there()
        for number, (title, work) in enumerate(self._works(), start=1):
            if number <= self._state.done:
                continue
            self._watcher.begins(number, self._state.steps, title)
            start = time.monotonic()
            said = work()
            seconds = time.monotonic() - start
            if said is not None:
                raise GptqDiffError(
                    f"{self._order.recipe.name}: step {number} of {self._state.steps} ({title}) failed: {said}",
                    f"the log is {self._log}; what is finished is kept, and the same command goes on from there"
                    + ("; on Debian and Ubuntu this needs the package python3-venv" if number == 1 else ""),
                )
            self._record(replace(self._state, done=number, seconds=self._state.seconds + seconds))
            self._watcher.ended(seconds)
        self._record(replace(self._state, size=disk_usage(self._order.directory)))
        return self._state

    def _record(self, state: State) -> None:
        state.write(self._order.directory)
        self._state = state

    def _check_what_is_there(self) -> None:
        """After an interruption: packages that only look installed are put down as not installed, and made good."""
        if probe(str(python_of(self._order.directory))) is None:
            self._record(replace(self._state, done=0))  # an interpreter that is gone: from the start
            return
        damaged = sweep(site_packages(self._order.directory))
        if damaged:
            self._watcher.note(f"half installed, and done again: {', '.join(damaged)}")
            self._record(replace(self._state, done=1))

    def _works(self) -> Iterator[tuple[str, Callable[[], str | None]]]:
        """(title, what does it) of every step; the work returns what it said where it failed."""
        yield f"make a virtual environment of {self._state.python}", self._virtual_environment
        for step in self._order.recipe.steps:
            yield step.title, partial(self._step, step)

    def _virtual_environment(self) -> str | None:
        clear(self._order.directory)  # venv would keep what a killed one left half written
        return self._run(make_virtual_environment(self._state.python, self._order.directory))

    def _step(self, step: Step) -> str | None:
        order = self._order
        torch_url = order.torch_url() if step.torch else None
        installer = Installer(python_of(order.directory), order.uv, torch_url, order.recipe.pins)
        said = self._run(installer.command(step))
        if step.kind == "remove" and said is None:
            for name in step.names:  # an installer that was killed in the middle of this forgets what it had left
                shutil.rmtree(site_packages(order.directory) / name, ignore_errors=True)
        return said

    def _run(self, command: list[str]) -> str | None:
        return run_step(command, self._order.directory, self._log, self._lock)


def clear(directory: Path) -> None:
    """Remove everything in an environment but its record and its log."""
    for entry in directory.iterdir():
        if entry.name in (STATE_FILE, LOG_FILE):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def disk_usage(directory: Path) -> int:
    """Bytes that the files below take on disk; links are not followed."""
    return sum(
        os.lstat(Path(folder) / name).st_blocks * 512 for folder, _, names in os.walk(directory) for name in names
    )
