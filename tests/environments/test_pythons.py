"""Which interpreter an environment is made with, and the sentence where there is none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.environments.pythons import find_python, probe
from gptq_diff.environments.recipes import Recipe
from gptq_diff.errors import UsageError
from tests.environments.offline import recipe

OLD = replace(recipe(name="old-engine"), pythons=(6, 7))
"""For Pythons that no test runs under."""


def interpreter(folder: Path, name: str, version: str, code: int = 0) -> Path:
    """An executable that says it is that version of Python, at a path other than its own, as shims do."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho /real/{name}\necho {version}\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; /bin/sh is started by its path."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def refused(wanted: Recipe, asked: str | None) -> UsageError:
    """The error."""
    with pytest.raises(UsageError) as caught:
        find_python(wanted, asked)
    return caught.value


def test_our_own_where_it_fits() -> None:
    """No other is looked for."""
    found = find_python(recipe(), None)
    assert (found.path, found.version) == (sys.executable, sys.version_info[:3])


def test_what_an_interpreter_says_of_itself() -> None:
    """The real one."""
    found = probe(sys.executable)
    assert found is not None
    assert (found.path, found.version) == (sys.executable, sys.version_info[:3])


def test_the_newest_that_fits_on_path(path: Path) -> None:
    """A shim's real path is taken; one that does not start, or is not what it is called, is passed over."""
    interpreter(path, "python3.6", "3 6 9")
    interpreter(path, "python3.7", "3 7 1", code=127)
    assert find_python(OLD, None).path == "/real/python3.6"
    interpreter(path, "python3.7", "3 8 0")
    assert find_python(OLD, None).path == "/real/python3.6"
    interpreter(path, "python3.7", "3 7 1")
    assert find_python(OLD, None).version == (3, 7, 1)


def test_one_that_uv_has_installed(path: Path, tmp_path: Path) -> None:
    """After PATH; asked for by the range."""
    managed = interpreter(tmp_path / "managed", "python3.7", "3 7 17")
    uv = path / "uv"
    uv.write_text(f'#!/bin/sh\n[ "$*" = "python find --no-project >=3.6,<3.8" ] && echo {managed}\n')
    uv.chmod(0o755)
    assert find_python(OLD, None).version == (3, 7, 17)


@pytest.mark.parametrize("said", ["", "not a path", "/no/such/python"])
def test_where_there_is_none_the_sentence_says_which_and_how(path: Path, said: str) -> None:
    """Whatever uv says."""
    uv = path / "uv"
    uv.write_text(f"#!/bin/sh\necho '{said}'\n")
    uv.chmod(0o755)
    error = refused(OLD, None)
    own = ".".join(map(str, sys.version_info[:3]))
    assert str(error) == f"old-engine needs Python 3.6 to 3.7: this one is {own}, and no other was found"
    assert error.hint == "install one, for example with `uv python install 3.7`, or give its path with --python"
    assert error.exit_code == 2


def test_one_that_was_asked_for(path: Path) -> None:
    """By its name on PATH or by its path; rather than a better one."""
    shim = interpreter(path, "python3.6", "3 6 9")
    interpreter(path, "python3.7", "3 7 1")
    assert find_python(OLD, "python3.6").version == (3, 6, 9)
    assert find_python(OLD, str(shim)).version == (3, 6, 9)


def test_one_that_was_asked_for_and_is_too_new() -> None:
    """Its version is said, and which would do."""
    error = refused(OLD, sys.executable)
    own = ".".join(map(str, sys.version_info[:3]))
    assert str(error) == f"old-engine needs Python 3.6 to 3.7, and --python {sys.executable} is {own}"
    assert error.exit_code == 2


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "no program at all", None])
def test_one_that_is_no_python(text: str | None, path: Path) -> None:
    """Nothing there, or something that is none."""
    if text is not None:
        (path / "strange").write_text(text)
        (path / "strange").chmod(0o755)
    error = refused(OLD, "strange")
    assert str(error) == "--python strange is no Python interpreter that can be started"
    assert error.exit_code == 2
