"""Cases are found by name, by directory, by file, and from a wheel as from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptq_diff.cases import library
from gptq_diff.cases.library import find_case, find_cases, shipped_folder, shipped_names
from gptq_diff.errors import UsageError
from tests.cases.written import BANG, write_case

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_by_name_by_directory_by_file(tmp_path):
    """All three are one case; a name of the library comes before a folder that is called so here."""
    file = write_case(tmp_path / "bang")
    assert find_case(str(file)) == find_case(str(file.parent))
    assert find_case("tiny-qwen2-bang").file.parent == shipped_folder() / "tiny-qwen2-bang"


def test_none_named_means_all_shipped():
    """In order of their names."""
    assert [case.name for case in find_cases(())] == sorted(shipped_names())


def test_a_directory_of_cases_stands_for_all_in_it(tmp_path):
    """A project's own cases/."""
    for name in ("one", "two"):
        write_case(tmp_path / name, BANG, ('name = "bang"', f'name = "{name}"'))
    (tmp_path / "notes").mkdir()
    assert [case.name for case in find_cases([str(tmp_path)])] == ["one", "two"]


def test_a_case_named_twice_is_run_once(tmp_path):
    """By name and by its folder."""
    file = write_case(tmp_path / "bang")
    assert len(find_cases([str(file), str(file.parent)])) == 1


def test_two_cases_of_one_name_are_refused(tmp_path):
    """Their outcomes could not be told apart."""
    files = [str(write_case(tmp_path / folder)) for folder in ("a", "b")]
    with pytest.raises(UsageError, match="two cases are called bang"):
        find_cases(files)


def test_an_unknown_name_is_met_with_the_nearest():
    """And with where names are listed."""
    with pytest.raises(UsageError, match="did you mean 'tiny-qwen2-bang'") as raised:
        find_case("tiny-qwen2-bank")
    assert "gptq-diff cases list" in raised.value.hint


def test_a_wheel_brings_them_along(tmp_path, monkeypatch):
    """pyproject.toml packs cases/ to where an installed package looks first."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        packed = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert packed == {"cases": "gptq_diff/cases/shipped"}
    installed = tmp_path / "site-packages" / "gptq_diff"
    write_case(installed / "cases" / "shipped" / "bang")
    monkeypatch.setattr(library, "_PACKAGE", installed)
    assert shipped_folder() == installed / "cases" / "shipped"
    assert shipped_names() == ("bang",)
