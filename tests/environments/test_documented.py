"""docs/environments.md cannot drift from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptq_diff.environments.installers import CPU_INDEX
from gptq_diff.environments.recipes import RECIPES, Recipe, names
from gptq_diff.environments.state import LOG_FILE, STATE_FILE

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "environments.md").read_text(encoding="utf-8")
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| `(\S+)` \|.*$", PAGE, re.MULTILINE)}


def test_the_table_has_every_recipe_and_no_other() -> None:
    """In the order in which they are offered."""
    assert list(ROWS) == names()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_row_says_what_the_recipe_does(recipe: Recipe) -> None:
    """The engine's and torch's versions, the Pythons, the programs."""
    row = ROWS[recipe.name]
    (engine,) = [n for step in recipe.steps for n in step.names if n.startswith(f"{recipe.name}==")]
    assert engine.partition("==")[2] in row
    assert "torch 2.13.0" in row
    for minor in recipe.pythons:
        assert f"3.{minor}" in row
    for program in recipe.programs:
        assert f"needs {program}" in row


def test_what_the_page_names_is_called_so() -> None:
    """Files and addresses."""
    for name in (STATE_FILE, LOG_FILE, CPU_INDEX):
        assert name in PAGE


def test_the_readme_names_recipes_that_there_are() -> None:
    """A command that is copied from it works."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "docs/environments.md" in readme
    assert "gptq-diff env create vllm-cpu" in readme
    for recipe in RECIPES:
        assert f"`{recipe.name}`" in readme or f"create {recipe.name}`" in readme
