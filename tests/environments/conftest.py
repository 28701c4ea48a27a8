from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_diff.environments.create import Order, create
from gptq_diff.environments.recipes import Recipe, Step
from gptq_diff.environments.state import State
from tests.environments.offline import Seen, recipe, wheel


@pytest.fixture(scope="session")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first step leaves, made in earnest once, since it takes seconds: a virtual environment with pip."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        directory = tmp_path_factory.mktemp("environments") / "empty"
        assert create(Order(recipe(), directory), Seen()).ready
    return directory


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds packages: `engine`, which asks for `extra`."""
    folder = tmp_path / "packages"
    wheel(folder, "engine", {"engine/__init__.py": "import helper\n"}, requires=("extra",))
    wheel(folder, "extra", {"extra/__init__.py": "raise ImportError('built for another engine')\n"})
    wheel(folder, "helper", {"helper/__init__.py": "", "helper/data.txt": "whole\n"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def begun(tmp_path: Path, empty_environment: Path) -> Callable[[Recipe], Path]:
    """An environment of that recipe whose first step is done."""

    def begin(of: Recipe) -> Path:
        directory = tmp_path / "envs" / of.name
        shutil.copytree(empty_environment, directory, symlinks=True)
        python = str((empty_environment / "bin" / "python").resolve())
        State(of.name, of.digest, python, steps=len(of.steps) + 1, done=1).write(directory)
        return directory

    return begin


FULL = recipe(
    Step("install", ("helper==1.0",)), Step("install", ("engine==1.0",)), Step("remove", ("extra",)),
    Step("import", ("engine",)),
)  # fmt: skip
"""All kinds of steps; made of what `packages` holds."""
