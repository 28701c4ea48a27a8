"""Find environments again, and say what is in them without starting their interpreters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import platformdirs

from gptq_diff.environments.recipes import names, recipe_named
from gptq_diff.environments.state import State, state_of
from gptq_diff.errors import UsageError
from gptq_diff.suggest import nearest

PROJECT_FOLDER = ".envs"
"""Where a project keeps environments of its own; used only where the user names one of them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", re.ASCII)


@dataclass(frozen=True)
class Environment:
    """One that was made by `env create`, finished or not."""

    name: str
    directory: Path
    state: State

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return python_of(self.directory)

    @property
    def outdated(self) -> bool:
        """Whether its recipe has changed since, or is not known any more."""
        try:
            return recipe_named(self.state.recipe).digest != self.state.digest
        except UsageError:
            return True

    @cached_property
    def packages(self) -> dict[str, str]:
        """Version of everything that is installed there."""
        return installed_in(self._site_packages)

    def has(self, module: str) -> bool:
        """Whether that module could be imported there; nothing is imported."""
        return (self._site_packages / module).is_dir() or (self._site_packages / f"{module}.py").is_file()

    @cached_property
    def _site_packages(self) -> Path:
        return site_packages(self.directory)


def user_folder() -> Path:
    """Where `env create` puts environments ($XDG_DATA_HOME/gptq-diff/envs on Linux)."""
    return platformdirs.user_data_path("gptq-diff") / "envs"


def environments_in(folder: Path) -> tuple[Environment, ...]:
    """Every environment in that folder, by name; none where there is no such folder."""
    try:
        places = sorted(folder.iterdir())
    except OSError:
        return ()
    found = ((place, state_of(place)) for place in places)
    return tuple(Environment(place.name, place, state) for place, state in found if state is not None)


def environment_at(directory: Path) -> Environment | None:
    """The environment in that directory; None where there is none of ours.

    UsageError where it was never finished: its interpreter would run, and fail at an odd place.
    """
    state = state_of(directory)
    if state is None:
        return None
    if not state.ready:
        elsewhere = "" if directory.parent == user_folder() else f" --dir {directory.parent}"
        raise UsageError(
            f"the environment {directory} is not finished ({state.done} of {state.steps} steps)",
            f"gptq-diff env create {directory.name}{elsewhere} goes on where it stopped",
        )
    return Environment(directory.name, directory, state)


def is_name(text: str) -> bool:
    """Whether an environment could be called that; a path of several parts could not."""
    return _NAME.fullmatch(text) is not None


def directory_of(name: str, folder: Path) -> Path:
    """Where the environment of that name is or would be; UsageError for what cannot be a name."""
    if not is_name(name):
        guess = nearest(name, names())
        raise UsageError(f"{name!r} is no environment's name{guess}", f"There are: {', '.join(names())}.")
    return (folder / name).absolute()


def python_of(directory: Path) -> Path:
    """The interpreter of a virtual environment."""
    return directory / "bin" / "python"


def site_packages(directory: Path) -> Path:
    """Where a virtual environment keeps its packages; a path that does not exist where it has none yet."""
    return next(iter(sorted(directory.glob("lib/python3.*/site-packages"))), directory / "lib" / "site-packages")


def installed_in(folder: Path) -> dict[str, str]:
    """Name (lower case, words joined by hyphens) -> version of every package in that folder of a sys.path.

    Read off the names of the metadata's directories, which are `name-version.dist-info` by
    https://packaging.python.org/en/latest/specifications/recording-installed-packages/; importlib.metadata would
    parse whole READMEs, and `gptq-diff backends` is to take no time.
    """
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except OSError:
        return {}
    infos = (entry.removesuffix(".dist-info").partition("-") for entry in entries if entry.endswith(".dist-info"))
    return {re.sub("[-_.]+", "-", name).lower(): version for name, _, version in infos}
