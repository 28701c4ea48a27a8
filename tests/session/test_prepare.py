"""From what a user typed to a checked `Asked`; what is refused is proved in tests/cli/test_run_bad_input.py."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.environments.find import user_folder
from gptq_diff.errors import UsageError
from gptq_diff.hosts import Here, Host
from gptq_diff.records import Support
from gptq_diff.session import prepare as module
from gptq_diff.session.prepare import interpreter, prepare_backends, prepare_model
from tests.environments.made import make_environment
from tests.session.damage import DAMAGED_LAYER, edit_config
from tests.session.in_process import asked


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


class TestInterpreters:
    def test_a_path_and_an_environments_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relative ones become absolute: a worker's working directory is another one."""
        python = executable(tmp_path / "env" / "bin" / "python")
        monkeypatch.chdir(tmp_path)
        assert interpreter("env") == interpreter("env/bin/python") == interpreter(str(tmp_path / "env")) == python

    def test_a_link_to_another_interpreter_stays_one(self, tmp_path: Path) -> None:
        """A virtual environment is known by where its link lies."""
        link = tmp_path / "python"
        link.symlink_to(sys.executable)
        assert interpreter(str(link)) == link

    def test_a_name_on_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        python = executable(tmp_path / "python9.9")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert interpreter("python9.9") == python

    @pytest.mark.parametrize("name", ["python9.9", "/nowhere/python", "empty", ""])
    def test_none_of_that_name(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="no Python interpreter"):
            interpreter(name)


class TestEnvironments:
    """A name after `@`: the user's own environment before anything that lies where the user stands."""

    def test_one_of_the_users_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before a directory of that name here, one in .envs, and a command on PATH."""
        directory = make_environment(user_folder(), "auto-gptq", {}, ())
        executable(tmp_path / "auto-gptq" / "bin" / "python")
        executable(tmp_path / "on-path" / "auto-gptq")
        make_environment(tmp_path / ".envs", "auto-gptq", {}, ())
        monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
        monkeypatch.chdir(tmp_path)
        assert interpreter("auto-gptq") == directory / "bin" / "python"
        assert interpreter("./auto-gptq") == tmp_path / "auto-gptq" / "bin" / "python"
        assert interpreter(".envs/auto-gptq") == tmp_path / ".envs" / "auto-gptq" / "bin" / "python"

    def test_one_of_a_release(self) -> None:
        """Its name holds the version."""
        directory = make_environment(user_folder(), "vllm==0.20.2", {}, ())
        assert prepare_backends("vllm-gptq@vllm==0.20.2", "vllm-gptq")[0].python == str(directory / "bin" / "python")

    def test_one_in_the_projects_folder_that_was_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before PATH; whether or not it was made by `env create`."""
        made = make_environment(tmp_path / ".envs", "auto-gptq", {}, ())
        by_hand = executable(tmp_path / ".envs" / "by-hand" / "bin" / "python")
        executable(tmp_path / "on-path" / "auto-gptq")
        monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
        monkeypatch.chdir(tmp_path)
        assert interpreter("auto-gptq") == made / "bin" / "python"
        assert interpreter("by-hand") == by_hand

    def test_a_name_is_no_way_out_of_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`..` is a path, relative to where the user stands."""
        executable(user_folder().parent / "bin" / "python")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(UsageError, match=r"no Python interpreter '\.\.'"):
            interpreter("..")

    @pytest.mark.parametrize("folder", ["user", ".envs"])
    def test_one_that_is_not_finished(self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would fail at an odd place; what finishes it is said."""
        monkeypatch.chdir(tmp_path)
        make_environment(user_folder() if folder == "user" else Path(folder), "auto-gptq", {}, (), left=2)
        with pytest.raises(UsageError, match=r"auto-gptq is not finished \(3 of 5 steps\)") as caught:
            interpreter("auto-gptq")
        elsewhere = "" if folder == "user" else " --dir .envs"
        assert caught.value.hint == f"gptq-diff env create auto-gptq{elsewhere} goes on where it stopped"

    def test_a_slip_is_told_the_nearest(self) -> None:
        make_environment(user_folder(), "auto-gptq", {}, ())
        with pytest.raises(UsageError, match=r"interpreter 'autogptq'; did you mean 'auto-gptq'\?"):
            interpreter("autogptq")

    def test_without_a_name_the_one_that_holds_the_engine(self) -> None:
        """The preset runs there, although it cannot in our own interpreter."""
        directory = make_environment(user_folder(), "auto-gptq", {"auto-gptq": "0.7.1"}, ("auto_gptq",))
        chosen = prepare_backends("auto-gptq,hf-fp32", "hf-fp32")
        assert [b.python for b in chosen] == [str(directory / "bin" / "python"), sys.executable]


class TestBackends:
    def test_one_that_cannot_run_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Refused before anything runs, unless another interpreter is named, which is not looked into."""
        nowhere = Host(Support(ok=False, reason="Python module not installed: x"))
        monkeypatch.setattr(Here, "host_of", lambda here, preset: nowhere)
        with pytest.raises(UsageError, match="hf-fp32 cannot run here: Python module not installed: x"):
            prepare_backends("hf-fp16", "hf-fp32")
        chosen = prepare_backends(f"hf-fp16@{sys.executable},hf-fp32@{sys.executable}", "hf-fp32")
        assert [b.name for b in chosen] == ["hf-fp16", "hf-fp32"]


class TestModels:
    def test_a_relative_directory_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "m").mkdir()
        monkeypatch.chdir(tmp_path)
        assert prepare_model("m", download=False) == tmp_path / "m"

    def test_the_vocabulary_of_a_wrapped_text_model(self, small_model: Path, tmp_path: Path) -> None:
        """Multimodal wrappers keep it in text_config: ids beyond it are refused all the same."""
        copy = Path(shutil.copytree(small_model, tmp_path / "copy"))
        raw = json.loads((copy / "config.json").read_text())
        inner = {"vocab_size": raw.pop("vocab_size"), "max_position_embeddings": 3}
        (copy / "config.json").write_text(json.dumps({**raw, "text_config": inner}))
        with pytest.raises(UsageError, match="0 to 511"):
            asked(copy, prompts=((600,),))
        edit_config(copy, max_position_embeddings=None)
        with pytest.raises(UsageError, match="3"):
            asked(copy, prompts=((1, 2, 3, 4),))

    def test_one_without_a_linear_that_can_be_read(self, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_checkpoint(small_model) as checkpoint:
            assert DAMAGED_LAYER in {spec.name for spec in checkpoint.layers}
            checkpoint.layers = ()
            monkeypatch.setattr(module, "open_checkpoint", lambda *_, **__: checkpoint)
            with pytest.raises(UsageError, match="no quantised linear"):
                asked(small_model)
