"""Environments that look like real ones, without an interpreter that could run."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.environments.recipes import recipe_named
from gptq_diff.environments.state import State


def make_environment(
    folder: Path, name: str, packages: dict[str, str], modules: tuple[str, ...], left: int = 0
) -> Path:
    """What `env create NAME` leaves in `folder`: packages by version, modules that can be imported.

    left: steps that are not done.
    """
    recipe = recipe_named(name)
    directory = folder / name
    site = directory / "lib" / "python3.11" / "site-packages"
    for module in modules:
        (site / module).mkdir(parents=True)
    for package, version in packages.items():
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 9\n")
    python.chmod(0o755)
    steps = len(recipe.steps) + 1
    State(name, recipe.digest, "/usr/bin/python3", steps=steps, done=steps - left).write(directory)
    return directory
