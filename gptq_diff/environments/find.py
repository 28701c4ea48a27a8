"""Find environments again, and say what is in them without starting their interpreters."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
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

    def has(self, module: str) -> bool:
        """Whether that module could be imported there; nothing is imported."""
        place = site_packages(self.directory)
        return (place / module).is_dir() or (place / f"{module}.py").is_file()

    def version(self, distribution: str) -> str | None:
        """Version of an installed distribution, or None."""
        return version_in([str(site_packages(self.directory))], distribution)


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


def version_in(path: list[str], distribution: str) -> str | None:
    """Version of a distribution that is installed in one of those directories, or None."""
    found = importlib.metadata.distributions(name=distribution, path=path)
    return next((one.version for one in found), None)
