"""What every command shares: how it ends, what it prints where, what config files do to it, how options are read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from gptq_diff import __version__
from gptq_diff.cli import app as app_module
from gptq_diff.cli import options
from gptq_diff.cli.options import CaptureMode, parse_size
from gptq_diff.cli.output import console, print_json
from gptq_diff.cli.settings import settings_of, user_config
from gptq_diff.config_file import Setting
from gptq_diff.errors import (
    BackendError,
    CannotJudge,
    CaptureError,
    CheckpointError,
    GptqDiffError,
    NothingFound,
    PromptError,
    UsageError,
)


def program(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "gptq_diff", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)


@pytest.fixture
def ending(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs `main` with one command whose body is given; its exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(body: Callable[[], object]) -> tuple[int, str]:
        fake = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
        fake.callback()(app_module.root)

        @fake.command()
        def act() -> None:
            body()

        monkeypatch.setattr(app_module, "app", fake)
        monkeypatch.setattr(sys, "argv", ["gptq-diff", "act"])
        with pytest.raises(SystemExit) as caught:
            app_module.main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


def raising(error: BaseException) -> Callable[[], None]:
    """A command's body that fails so."""

    def body() -> None:
        raise error

    return body


class TestEndings:
    """Exit codes of contract.md, and one sentence on stderr."""

    def test_a_command_that_returns_ends_with_0(self, ending: Callable[..., tuple[int, str]]) -> None:
        """And says nothing of its own."""
        assert ending(lambda: None) == (0, "")

    @pytest.mark.parametrize("code", [0, 1, 2, 3])
    def test_a_command_chooses_its_exit_code(self, ending: Callable[..., tuple[int, str]], code: int) -> None:
        """`run` ends with 1 by raising typer.Exit(1) after its report."""
        assert ending(raising(typer.Exit(code))) == (code, "")

    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (GptqDiffError, 3),
            (UsageError, 2),
            (CheckpointError, 2),
            (PromptError, 2),
            (NothingFound, 1),
            (CannotJudge, 3),
            (CaptureError, 3),
            (BackendError, 3),
        ],
    )
    def test_an_error_of_ours_is_one_sentence_a_hint_and_its_code(
        self, ending: Callable[..., tuple[int, str]], kind: type[GptqDiffError], code: int
    ) -> None:
        """No traceback."""
        assert ending(raising(kind("what and where", "What to do."))) == (
            code,
            "gptq-diff: what and where\n  hint: What to do.\n",
        )

    def test_without_a_hint_there_is_no_second_line(self, ending: Callable[..., tuple[int, str]]) -> None:
        """Hints are optional."""
        assert ending(raising(UsageError("what"))) == (2, "gptq-diff: what\n")

    def test_what_an_error_quotes_cannot_reach_the_terminal(self, ending: Callable[..., tuple[int, str]]) -> None:
        """Paths and prompts are other people's text; markup is not read either."""
        error = UsageError("\x1b[31mred\x07 \u202e[bold]", "\x9b2J[/red]")
        assert ending(raising(error)) == (2, "gptq-diff: red [bold]\n  hint: [/red]\n")

    def test_an_interrupt_ends_with_130(self, ending: Callable[..., tuple[int, str]]) -> None:
        """As shells expect of Ctrl-C."""
        assert ending(raising(KeyboardInterrupt())) == (130, "gptq-diff: interrupted\n")

    def test_a_reader_that_went_away_is_no_finding(self, ending: Callable[..., tuple[int, str]]) -> None:
        """Typer would end with 1, which says that a numeric failure was found."""
        assert ending(raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == (141, "")

    @pytest.mark.parametrize(
        "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR]
    )
    def test_a_disk_that_cannot_be_written_is_a_usage_error(
        self, ending: Callable[..., tuple[int, str]], code: int
    ) -> None:
        """The person can mend it, so it is told without a traceback, with the path."""
        assert ending(raising(OSError(code, os.strerror(code), "runs/x"))) == (
            2,
            f"gptq-diff: runs/x: {os.strerror(code)}\n  hint: Free some space, or give another path.\n",
        )

    def test_running_out_of_memory_is_no_verdict(self, ending: Callable[..., tuple[int, str]]) -> None:
        """Nor a traceback."""
        code, err = ending(raising(MemoryError()))
        assert code == 3
        assert err.startswith("gptq-diff: out of memory\n  hint: ")

    def test_an_early_end_of_a_file_is_no_finding(self, ending: Callable[..., tuple[int, str]]) -> None:
        """Typer would say Aborted! and end with 1."""
        code, err = ending(raising(EOFError()))
        assert code == 3
        assert err.endswith("gptq-diff: a file or standard input ended early\n")

    @pytest.mark.parametrize("error", [ValueError("odd"), KeyError("k"), OSError(errno.EIO, "I/O"), RecursionError()])
    def test_a_defect_of_ours_ends_with_3_and_a_traceback(
        self, ending: Callable[..., tuple[int, str]], error: Exception
    ) -> None:
        """Python's own code for it is 1, and a CI job would read that as a finding."""
        code, err = ending(raising(error))
        assert code == 3
        assert "Traceback (most recent call last)" in err
        assert type(error).__name__ in err
        assert err.endswith(
            "gptq-diff: this is a defect of gptq-diff itself\n  hint: Please report it with the lines above.\n"
        )

    def test_a_traceback_is_stripped_too(self, ending: Callable[..., tuple[int, str]]) -> None:
        """The message of somebody's exception may quote a prompt."""
        assert "\x1b" not in ending(raising(ValueError("\x1b[2J")))[1]


class TestStreams:
    """Real pipes and devices, in a process of its own."""

    @pytest.mark.parametrize(
        ("arguments", "stream"), [(["backends", "--json"], "stdout"), (["--help"], "stdout"), (["backends"], "stderr")]
    )
    def test_a_closed_pipe_is_quiet(self, arguments: list[str], stream: str) -> None:
        """`gptq-diff ... | head -1` must not end in a traceback."""
        read, write = os.pipe()
        os.close(read)
        others = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
        command = [sys.executable, "-m", "gptq_diff", *arguments]
        done = subprocess.run(command, timeout=60, check=False, **others)
        os.close(write)
        assert done.returncode == 141
        assert not done.stdout
        assert not done.stderr

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
    def test_a_full_disk_behind_stdout_is_told(self) -> None:
        """JSON that was cut short must not look like success."""
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "gptq_diff", "backends", "--json"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 2
        assert done.stderr == ("gptq-diff: No space left on device\n  hint: Free some space, or give another path.\n")

    @pytest.mark.parametrize("line", ["backends 2>&-", "backends --json >&-", "--help >&- 2>&-"])
    def test_streams_may_be_closed_from_the_start(self, line: str) -> None:
        """As some job schedulers start programs."""
        shell = ["sh", "-c", f'"{sys.executable}" -m gptq_diff {line}']
        done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0
        assert "Traceback" not in done.stderr


class TestProgram:
    """The program as it is installed."""

    def test_version(self) -> None:
        """One line for a bug report."""
        done = program("--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"gptq-diff {__version__}\n", "")

    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help_lists_the_commands(self, flag: str) -> None:
        """On stdout, with exit code 0."""
        done = program(flag)
        assert done.returncode == 0
        assert "Usage: gptq-diff [OPTIONS] COMMAND" in done.stdout
        assert "backends" in done.stdout
        assert "model" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["modle"], "No such command 'modle'. Did you mean 'model'?"),
            (["--no-such-option"], "No such option: --no-such-option"),
            (["backends", "extra"], "extra"),
            (["model", "build"], "Missing argument 'NAME'"),
            (["model", "build", "smollm2", "--bits", "four"], "'--bits'"),
        ],
    )
    def test_bad_usage_ends_with_2(self, arguments: list[str], said: str) -> None:
        """Told on stderr; stdout stays empty for programs."""
        result = CliRunner().invoke(app_module.app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr

    def test_an_error_from_deep_inside_reaches_the_person(self) -> None:
        """Through Typer, as one sentence and exit code 2."""
        done = program("model", "build", "smollm2", "--gain-shift", "1:2")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("gptq-diff: the gain shift '1:2' is not BLOCK:GROUP:GAIN\n")

    def test_model_build_says_where_it_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """To stdout only for programs, with --json."""
        from gptq_diff.cli import model_build

        monkeypatch.setattr(model_build, "build", lambda *_: tmp_path / "made")
        asked = CliRunner().invoke(app_module.app, ["model", "build", "tiny", "--json"])
        assert json.loads(asked.stdout) == {"schema_version": 1, "path": str(tmp_path / "made")}
        plain = CliRunner().invoke(app_module.app, ["model", "build", "tiny"])
        assert plain.stdout == ""
        assert str(tmp_path / "made") in plain.stderr

    def test_model_build_hands_every_option_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name mixed up here would build another model than the one asked for."""
        from gptq_diff.cli import model_build
        from gptq_diff.models.options import BuildOptions, GainShift

        seen: list[tuple[object, ...]] = []
        monkeypatch.setattr(model_build, "build", lambda name, options, out, console: seen.append((name, options, out)))
        numbers = {"bits": 8, "group-size": 32, "hidden": 1, "intermediate": 2, "blocks": 3, "heads": 4, "kv-heads": 5}
        arguments = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        arguments += ["--no-sym", "--desc-act", "--checkpoint-format", "gptq_v2", "--no-ambiguous-zeros"]
        arguments += ["--seed", "6", "--gain-shift", "7:8:16", "--out", "there"]
        result = CliRunner().invoke(app_module.app, ["model", "build", "tiny", *arguments])
        assert result.exit_code == 0, result.output
        expected = BuildOptions(
            bits=8,
            group_size=32,
            sym=False,
            desc_act=True,
            checkpoint_format="gptq_v2",
            ambiguous_zeros=False,
            hidden=1,
            intermediate=2,
            blocks=3,
            heads=4,
            kv_heads=5,
            seed=6,
            gain_shift=GainShift(7, 8, 16.0),
        )
        assert seen == [("tiny", expected, Path("there"))]
        CliRunner().invoke(app_module.app, ["model", "build", "tiny"])
        assert seen[1] == ("tiny", BuildOptions(), None)

    def test_model_inspect_hands_its_options_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`--json` as well."""
        from gptq_diff.cli import model_inspect

        seen: list[tuple[str, bool]] = []
        monkeypatch.setattr(model_inspect, "inspect", lambda path, as_json, console: seen.append((path, as_json)))
        for arguments in (["DIR"], ["DIR", "--json"]):
            assert CliRunner().invoke(app_module.app, ["model", "inspect", *arguments]).exit_code == 0
        assert seen == [("DIR", False), ("DIR", True)]


class TestConfigFiles:
    """Files give defaults; the command line wins."""

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
        """A stand-in for `run` and for `model build`: what arrived at the one called."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        seen: dict[str, Any] = {}
        fake = typer.Typer(rich_markup_mode=None)
        fake.callback()(app_module.root)
        group = typer.Typer()
        fake.add_typer(group, name="model")

        @fake.command("run")
        def stand_in(
            model: options.Model,
            max_new_tokens: options.MaxNewTokens = 8,
            budget: options.CaptureBudget = 2_000_000_000,
            capture: options.Capture = CaptureMode.AUTO,
            overwrite: options.Overwrite = False,
            backends: options.Backends = None,
            as_json: options.AsJson = False,
            out: options.Out = None,
            download: options.Download = False,
        ) -> None:
            seen.update(locals())

        @group.command()
        def inspect(path: str) -> None:
            seen.update(locals())

        @group.command()
        def build(seed: options.Seed = 0, sym: Annotated[bool | None, typer.Option("--sym/--no-sym")] = None) -> None:
            seen.update(locals())

        monkeypatch.setattr(app_module, "app", fake)

        def call(*arguments: str) -> dict[str, Any]:
            seen.clear()
            result = CliRunner().invoke(fake, list(arguments))
            if isinstance(result.exception, GptqDiffError):
                raise result.exception
            assert result.exit_code == 0, result.output
            return {name: value for name, value in seen.items() if name != "seen"}

        return call

    def test_a_project_gives_defaults_even_for_what_is_required(self, run: Callable[..., dict[str, Any]]) -> None:
        """`gptq-diff run` alone, in a folder set up for it."""
        Path("gptq-diff.toml").write_text(
            'model = "m"\nmax-new-tokens = 3\ncapture-budget = "1MB"\ncapture = "full"\noverwrite = true\n'
            'backends = ["hf-fp16", "sim-gptq"]\njson = true\nout = "o"\n'
        )
        assert run("run") == {
            "model": "m",
            "max_new_tokens": 3,
            "budget": 1_000_000,
            "capture": CaptureMode.FULL,
            "overwrite": True,
            "backends": "hf-fp16,sim-gptq",
            "as_json": True,
            "out": Path("o"),
            "download": False,
        }

    def test_the_command_line_wins_over_project_over_user(
        self, run: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        """Each option by itself."""
        (tmp_path / "config" / "gptq-diff").mkdir(parents=True)
        (tmp_path / "config" / "gptq-diff" / "config.toml").write_text(
            'model = "user"\nmax-new-tokens = 1\nout = "user"\ndownload = true\n'
        )
        Path("gptq-diff.toml").write_text('model = "project"\nmax-new-tokens = 2\n')
        got = run("run", "--model", "typed")
        assert (got["model"], got["max_new_tokens"], got["out"]) == ("typed", 2, Path("user"))
        assert got["download"] is True

    def test_a_command_of_a_command_has_its_own_table(self, run: Callable[..., dict[str, Any]]) -> None:
        """And takes nothing from the options of `run`."""
        Path("pyproject.toml").write_text(
            "[tool.gptq-diff]\nmax-new-tokens = 2\n[tool.gptq-diff.model.build]\nsym = false\n"
        )
        assert run("model", "build") == {"seed": 0, "sym": False}

    def test_a_project_cannot_choose_an_interpreter(self, run: Callable[..., dict[str, Any]]) -> None:
        """Through the whole program, with the line."""
        Path("gptq-diff.toml").write_text('model = "m"\nbackends = "hf-fp16@./evil"\n')
        with pytest.raises(UsageError) as caught:
            run("run")
        assert str(caught.value) == (
            "gptq-diff.toml, line 2: 'backends' names an interpreter, which can run code, "
            "and is not taken from a project's file"
        )

    def test_an_argument_is_no_option(self, run: Callable[..., dict[str, Any]]) -> None:
        """`path` of `model inspect` is for the command line alone."""
        Path("gptq-diff.toml").write_text('[model.inspect]\npath = "x"\n')
        with pytest.raises(UsageError, match="line 2: unknown option 'path'"):
            run("model", "inspect", "y")

    def test_a_bad_file_ends_the_real_program_with_2(self, tmp_path: Path) -> None:
        """Whatever the command is."""
        (tmp_path / "gptq-diff.toml").write_text("zzz = 1\n")
        done = program("backends", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        assert done.returncode == 2
        assert done.stderr.startswith("gptq-diff: gptq-diff.toml, line 1: unknown option 'zzz'\n  hint: ")

    @pytest.mark.parametrize(
        ("value", "expected"), [("/xdg", "/xdg"), ("relative", "~/.config"), ("", "~/.config"), (None, "~/.config")]
    )
    def test_where_the_users_file_is(self, value: str | None, expected: str) -> None:
        """The XDG specification: a relative path is to be ignored."""
        environment = {} if value is None else {"XDG_CONFIG_HOME": value}
        assert user_config(environment) == Path(expected).expanduser() / "gptq-diff" / "config.toml"

    def test_settings_are_read_off_the_real_commands(self) -> None:
        """Names as typed, parameters as in the function, kinds from its annotations."""
        settings = settings_of(app_module.app)
        assert settings[("backends",)] == {"json": Setting("as_json", (bool,))}
        build = settings[("model", "build")]
        assert build["group-size"] == Setting("group_size", (int,))
        assert build["sym"] == Setting("sym", (bool,))
        assert build["out"] == Setting("out", (str,))
        assert "name" not in build


class TestOptions:
    """How options are read."""

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("0", 0),
            ("4096", 4096),
            (4096, 4096),
            ("2GB", 2_000_000_000),
            ("2gb", 2_000_000_000),
            (" 2 GB ", 2_000_000_000),
            ("2G", 2_000_000_000),
            ("1.5GiB", 1_610_612_736),
            ("512MiB", 536_870_912),
            ("1k", 1000),
            ("1Ki", 1024),
            ("3TB", 3_000_000_000_000),
            ("7B", 7),
        ],
    )
    def test_sizes(self, text: str | int, size: int) -> None:
        """GB is 1000^3, GiB 1024^3."""
        assert parse_size(text) == size

    @pytest.mark.parametrize(
        "text", ["", "GB", "-1GB", "2XB", "2 G B", "1e9", "1,5GB", "2GBs", "inf", "2i", "2iB", "٣GB", ".5GB"]
    )
    def test_what_is_no_size(self, text: str) -> None:
        """The sentence shows the ways to write one."""
        with pytest.raises(UsageError) as caught:
            parse_size(text)
        assert str(caught.value) == f"{text!r} is not a size"
        assert caught.value.hint == "Write a number and a unit: 500MB, 2GB, 1.5GiB."

    def test_every_shared_option_has_a_name_of_the_contract(self) -> None:
        """contract.md, Options, and CHANGELOG.md for those that were added."""
        names = {
            decl
            for alias in vars(options).values()
            for extra in getattr(alias, "__metadata__", ())
            for decl in (extra.default, *extra.param_decls)
            if decl.startswith("--")
        }
        assert names == {
            *("--model", "--reference-model", "--prompt-file", "--backends", "--reference", "--out", "--overwrite"),
            *("--capture", "--capture-budget", "--max-new-tokens", "--repeats", "--teacher-force", "--system"),
            "--prefix-cache",
            *(
                "--no-chat-template",
                "--trust-remote-code",
                "--download",
                "--device",
                "--timeout",
                "--seed",
                "--original",
            ),
            *("--tensor-parallel-size", "--sweep-tokens", "--experiments", "--workarounds"),
            *("--allow-skip", "--json", "--quiet", "--verbose", "--full-hash", "--simulate"),
        }


class TestOutput:
    """People read stderr, programs stdout."""

    def test_the_console_writes_to_stderr_and_reads_no_markup(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A model's name may hold brackets and colons."""
        console().print("[bold]x[/bold] :smile: [/nonsense]")
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "[bold]x[/bold] :smile: [/nonsense]\n")

    def test_a_quiet_console_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`--quiet`."""
        console(quiet=True).print("x")
        assert capsys.readouterr() == ("", "")

    def test_json_is_ascii_and_complete(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Any locale can print it, and any parser read it."""
        print_json({"text": "中\u202e", "n": None})
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.isascii()
        assert json.loads(captured.out) == {"text": "中\u202e", "n": None}

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_json_without_nan(self, value: float) -> None:
        """NaN is no JSON: a report must say null and why."""
        with pytest.raises(ValueError, match="not JSON compliant"):
            print_json({"x": value})
