"""`gptq-diff env create|list|remove`, as they are typed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from gptq_diff import hosts
from gptq_diff.cli import env_create, main_job
from gptq_diff.cli.env_create import Steps, cpu_index
from gptq_diff.environments import recipes
from gptq_diff.environments.find import user_folder
from gptq_diff.environments.installers import CPU_INDEX
from gptq_diff.environments.recipes import Recipe, Step, recipe_named
from gptq_diff.environments.state import LOG_FILE, STATE_FILE, State, state_of
from gptq_diff.session.asked import Asked
from gptq_diff.text import clean
from tests.environments.made import make_environment

Program = Callable[..., tuple[int, str, str]]

TRIVIAL = Recipe("trivial", "for tests", "json", (9, 99), (Step("import", ("json",)), Step("import", ("csv",))))
BROKEN = Recipe("broken", "for tests", "json", (9, 99), (Step("import", ("no_such_module_here",)),))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`trivial` and `broken` can be made, and are begun in the user's folder: the virtual environment is done."""
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, TRIVIAL, BROKEN))
    for recipe in (TRIVIAL, BROKEN):
        directory = user_folder() / recipe.name
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").symlink_to(sys.executable)
        state = State(recipe.name, recipe.digest, sys.executable, steps=len(recipe.steps) + 1, done=1)
        state.write(directory)
    return user_folder()


class TestCreate:
    """One line a step, and where it is."""

    def test_lines_for_a_log(self, begun: Path, program: Program) -> None:
        """stderr, without a terminal: a line when a step is finished, with its seconds."""
        code, out, err = program("env", "create", "trivial")
        assert (code, out) == (0, "")
        lines = err.splitlines()
        assert lines[0] == "2/3 import json: 0 s"
        assert lines[1] == "3/3 import csv: 0 s"
        assert lines[2].startswith(f"{begun / 'trivial'} is ready: 0 s, ")
        assert lines[3] == "use it: --backends BACKEND@trivial"
        code, _, err = program("env", "create", "trivial")
        assert code == 0
        assert err.splitlines()[0].startswith(f"{begun / 'trivial'} is ready")

    def test_json(self, begun: Path, program: Program) -> None:
        """For scripts: where its interpreter is."""
        code, out, err = program("env", "create", "trivial", "--json")
        assert (code, err) == (0, "")
        directory = begun / "trivial"
        assert json.loads(out) == {
            "schema_version": 1,
            "name": "trivial",
            "path": str(directory),
            "python": str(directory / "bin" / "python"),
        }

    def test_quiet(self, begun: Path, program: Program) -> None:
        """Nothing but errors."""
        assert program("env", "create", "trivial", "-q") == (0, "", "")

    def test_elsewhere(self, begun: Path, program: Program, tmp_path: Path) -> None:
        """--dir is the folder that holds environments; a name is not enough to use it then."""
        shutil.copytree(begun, tmp_path / "cwd" / ".envs", symlinks=True)
        code, _, err = program("env", "create", "trivial", "--dir", ".envs")
        assert code == 0
        assert f"use it: --backends BACKEND@{tmp_path / 'cwd' / '.envs' / 'trivial'}" in err
        state = state_of(begun / "trivial")
        assert state is not None
        assert not state.ready

    def test_a_step_that_fails(self, begun: Path, program: Program) -> None:
        """Exit 3: one sentence with what the log says last, the log's place, and that nothing is lost."""
        code, out, err = program("env", "create", "broken")
        assert (code, out) == (3, "")
        assert err.splitlines() == [
            "gptq-diff: broken: step 2 of 2 (import no_such_module_here) failed: "
            "ModuleNotFoundError: No module named 'no_such_module_here'",
            f"  hint: the log is {begun / 'broken' / LOG_FILE}; what is finished is kept, and the same command goes on "
            "from there",
        ]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["vllm-gpu"], "there is no environment called 'vllm-gpu' to create; did you mean 'vllm-cpu'?"),
            (["vllm==latest"], "'latest' is not a version of vllm"),
            (["auto-gptq", "--python", "/no/such/python"], "--python /no/such/python is no Python interpreter"),
            (["auto-gptq", "--installer", "uv"], "--installer uv: there is no uv on PATH"),
        ],
    )
    def test_bad_arguments(
        self, arguments: list[str], said: str, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Exit 2, and nothing is made."""
        monkeypatch.setenv("PATH", str(tmp_path))
        code, _, err = program("env", "create", *arguments)
        assert code == 2
        assert said in err
        assert not [place for place in user_folder().glob("*") if not place.name.endswith(".lock")]

    def test_a_project_cannot_choose_where_or_what_with(self, program: Program, tmp_path: Path) -> None:
        """An environment is an interpreter, and an index is where its code comes from."""
        for line in ('dir = ".envs"', 'python = "/tmp/evil"', 'torch-url = "/tmp/evil"'):
            (tmp_path / "cwd" / "gptq-diff.toml").write_text(f"[env.create]\n{line}\n")
            code, _, err = program("env", "create", "auto-gptq")
            assert code == 2
            assert f"gptq-diff.toml, line 2: {line.split()[0]!r} can run code or reach out" in err.replace('"', "'")


class TestTorchsIndex:
    """PyTorch's builds for the CPU save 3 GB, and their index is not everywhere to be reached."""

    def asked(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None, *, gpu: bool = False) -> list[str]:
        """The addresses that are opened from now on, `error` being what comes of it."""
        opened: list[str] = []

        def urlopen(url: str, timeout: float) -> contextlib.AbstractContextManager[None]:
            opened.append(url)
            assert timeout < 60
            if error is not None:
                raise error
            return contextlib.nullcontext()

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(hosts, "_GPU_SIGNS", ("/",) if gpu else ())
        return opened

    def test_it_is_used_where_it_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a machine without a GPU for every recipe."""
        opened = self.asked(monkeypatch, None)
        assert cpu_index(recipe_named("auto-gptq"), pytest.fail) == CPU_INDEX
        assert opened == [f"{CPU_INDEX}/torch/"]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (urllib.error.URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
            (urllib.error.HTTPError(CPU_INDEX, 403, "Forbidden", None, None), "Forbidden"),  # type: ignore[arg-type]
            (TimeoutError("timed out"), "timed out"),
        ],
    )
    def test_it_is_done_without_where_it_does_not(
        self, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A company's mirror, a machine without a way out: said, and no failure."""
        self.asked(monkeypatch, error)
        notes: list[str] = []
        assert cpu_index(recipe_named("vllm-cpu"), notes.append) is None
        assert len(notes) == 1
        assert reason in notes[0]

    def test_with_a_gpu_only_for_what_is_made_for_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The others are to use the GPU."""
        opened = self.asked(monkeypatch, None, gpu=True)
        assert cpu_index(recipe_named("auto-gptq"), pytest.fail) is None
        assert opened == []
        assert cpu_index(recipe_named("vllm-cpu"), pytest.fail) == CPU_INDEX

    def test_one_that_was_named_is_not_tried_out(self, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """--torch-url is handed on as it is."""
        opened = self.asked(monkeypatch, None)
        used = []
        monkeypatch.setattr(
            env_create, "create", lambda order, _: (used.append(order.torch_url()), State("x", "", "", 1, 1))[1]
        )
        env_create.create_and_show(
            "trivial", None, None, uv=False, torch_url="https://mirror.invalid", as_json=True, quiet=True
        )
        assert (used, opened) == (["https://mirror.invalid"], [])


class TestSteps:
    """What a person sees on a terminal."""

    def shown(self, interrupt: type[BaseException] | None = None) -> str:
        """The last picture on a terminal of 60 columns."""
        screen = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
        with contextlib.suppress(KeyboardInterrupt), Steps(screen) as steps:
            steps.begins(1, 2, "make a virtual environment")
            steps.ended(0.1)
            steps.begins(2, 2, "install " + "very-long-name " * 5)
            if interrupt is not None:
                raise interrupt
            steps.ended(0.1)
        return clean(screen.file.getvalue())  # type: ignore[attr-defined]

    def test_one_line_a_step_with_its_time(self) -> None:
        """Cut to the terminal's width, the time first."""
        lines = [line.rstrip() for line in self.shown().splitlines()]
        assert "+ 0:00:00 1/2 make a virtual environment" in lines
        assert any(line.startswith("+ 0:00:00 2/2 install very-long-name") and line.endswith("…") for line in lines)

    def test_ctrl_c_says_that_nothing_is_lost(self) -> None:
        """And how to go on."""
        assert "the same command goes on from there" not in self.shown()
        assert "the same command goes on from there" in self.shown(KeyboardInterrupt)


class TestList:
    """What there is."""

    def test_a_table(self, program: Program) -> None:
        """On stderr; state, versions, and what else could be made."""
        make_environment(user_folder(), "vllm-cpu", {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, ("vllm",))
        make_environment(user_folder(), "auto-gptq", {}, (), left=3)
        code, out, err = program("env", "list")
        assert (code, out) == (0, "")
        lines = [" ".join(line.split()) for line in err.splitlines()]
        assert lines == [
            "environment state versions size",
            "auto-gptq unfinished, 2 of 5 steps",
            "vllm-cpu ready vllm-cpu 0.32.0, torch 2.13.0+cpu",
            f"in {user_folder()}",
            "gptq-diff env create makes vllm-cpu, auto-gptq, gptqmodel, vllm==VERSION, vllm-cpu==VERSION",
        ]

    def test_json(self, program: Program, tmp_path: Path) -> None:
        """Of another folder."""
        directory = make_environment(tmp_path / "envs", "auto-gptq", {"auto-gptq": "0.7.1"}, ("auto_gptq",))
        raw = json.loads((directory / STATE_FILE).read_text())
        (directory / STATE_FILE).write_text(json.dumps({**raw, "digest": "0", "size": 5, "seconds": 1.26}))
        code, out, err = program("env", "list", "--json", "--dir", tmp_path / "envs")
        assert (code, err) == (0, "")
        assert json.loads(out) == {
            "schema_version": 1,
            "folder": str(tmp_path / "envs"),
            "environments": [
                {
                    "name": "auto-gptq", "path": str(directory), "python": str(directory / "bin" / "python"),
                    "ready": True, "outdated": True, "steps": 5, "done": 5, "versions": {"auto-gptq": "0.7.1"},
                    "bytes": 5, "seconds": 1.3,
                }
            ],
            "recipes": ["vllm-cpu", "auto-gptq", "gptqmodel", "vllm==VERSION", "vllm-cpu==VERSION"],
        }  # fmt: skip

    def test_none(self, program: Program) -> None:
        """Where they would be, and what could be made."""
        code, _, err = program("env", "list")
        assert code == 0
        assert err.splitlines()[0] == f"none in {user_folder()}"


class TestRemove:
    """Ours, and nothing else."""

    def test_it_is_gone(self, program: Program) -> None:
        """With what it took."""
        directory = make_environment(user_folder(), "auto-gptq", {}, ())
        code, out, err = program("env", "remove", "auto-gptq")
        assert (code, out, err) == (0, "", f"removed {directory}\n")
        assert not directory.exists()

    def test_somebody_elses_stays(self, program: Program, tmp_path: Path) -> None:
        """Exit 2 for what has no record of ours, and for what is no name."""
        mine = tmp_path / "cwd" / "mine"
        mine.mkdir()
        for arguments in (("mine", "--dir", "."), ("../cwd/mine", "--dir", "."), ("..",), ("auto-gptq",)):
            code, _, err = program("env", "remove", *arguments)
            assert code == 2, err
        assert mine.exists()


class TestConfigFiles:
    """Who may choose an interpreter: the user, on the command line or in a file of their own; no project."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
        """What `run` would run."""
        seen: list[Asked] = []
        monkeypatch.setattr(main_job, "run_and_show", lambda asked, *_, **__: seen.append(asked) or 0)
        return seen

    def test_the_users_own_file_names_an_environment(
        self, asked: list[Asked], program: Program, small_model: Path, tmp_path: Path
    ) -> None:
        """As `name@environment` does on the command line, which wins."""
        directory = make_environment(user_folder(), "auto-gptq", {}, ("auto_gptq",))
        own = tmp_path / "config" / "gptq-diff" / "config.toml"
        own.parent.mkdir(parents=True)
        own.write_text('backends = ["hf-fp32", "auto-gptq@auto-gptq"]\n')
        arguments = ("run", "--model", small_model, "--prompt-file", "-")
        code, _, err = program(*arguments, stdin='[{"token_ids": [1, 2]}]')
        assert code == 0, err
        assert [(b.name, b.python) for b in asked[0].backends] == [
            ("hf-fp32", sys.executable),
            ("auto-gptq", str(directory / "bin" / "python")),
        ]
        assert program(*arguments, "--backends", "hf-fp32", stdin='[{"token_ids": [1, 2]}]')[0] == 0
        assert [b.name for b in asked[1].backends] == ["hf-fp32"]

    def test_a_projects_file_may_not(self, asked: list[Asked], program: Program, tmp_path: Path) -> None:
        """Not even by the name of an environment: the project may hold one of that name."""
        make_environment(user_folder(), "auto-gptq", {}, ("auto_gptq",))
        (tmp_path / "cwd" / "gptq-diff.toml").write_text('timeout = 9\nbackends = "auto-gptq@auto-gptq"\n')
        code, _, err = program("run", "--model", "x", "--prompt-file", "-")
        assert code == 2
        assert "gptq-diff.toml, line 2: 'backends' names an interpreter, which can run code" in err
        assert asked == []
