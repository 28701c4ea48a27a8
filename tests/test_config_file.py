"""Options from files: what is taken, which file wins, and the sentence for every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.config_file import Defaults, Setting, load, unsafe
from gptq_diff.errors import UsageError
from gptq_diff.toml_file import read_toml

SETTINGS = {
    ("run",): {
        "model": Setting("model", (str,)),
        "backends": Setting("backends", (str, list)),
        "max-new-tokens": Setting("max_new_tokens", (int,)),
        "timeout": Setting("timeout", (float,)),
        "capture-budget": Setting("budget", (str, int)),
        "overwrite": Setting("overwrite", (bool,)),
        "trust-remote-code": Setting("trust_remote_code", (bool,)),
        "download": Setting("download", (bool,)),
    },
    ("demo",): {"out": Setting("out", (str,))},
    ("model", "build"): {"seed": Setting("seed", (int,)), "bits": Setting("bits", (int,))},
}
PLACES = "Give it on the command line, or in $XDG_CONFIG_HOME/gptq-diff/config.toml."


def loaded(
    tmp_path: Path, project: str | None = None, *, pyproject: str | None = None, user: str | None = None
) -> Defaults:
    """What those files give together."""
    for name, content in (("gptq-diff.toml", project), ("pyproject.toml", pyproject), ("user.toml", user)):
        if content is not None:
            (tmp_path / name).write_text(content)
    return load(tmp_path, tmp_path / "user.toml", SETTINGS)


def refused(tmp_path: Path, project: str | None = None, **others: str) -> tuple[str, str | None]:
    """The error's sentence without the directory, and its hint; exit code 2."""
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, project, **others)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{tmp_path}/", ""), caught.value.hint


class TestWhatIsTaken:
    """Good files."""

    def test_no_file_gives_nothing(self, tmp_path: Path) -> None:
        """The ordinary case."""
        assert loaded(tmp_path) == {}

    @pytest.mark.parametrize("content", ["", "# nothing\n", "[run]\n"])
    def test_an_empty_file_gives_nothing(self, tmp_path: Path, content: str) -> None:
        """Nor does it fail."""
        assert loaded(tmp_path, content) == {}

    def test_top_level_keys_are_options_of_run(self, tmp_path: Path) -> None:
        """Under the names that the command's function has for them."""
        content = 'model = "m"\nmax-new-tokens = 4\ntimeout = 2.5\noverwrite = true\ncapture-budget = "1GB"\n'
        assert loaded(tmp_path, content) == {
            "run": {"model": "m", "max_new_tokens": 4, "timeout": 2.5, "overwrite": True, "budget": "1GB"}
        }

    def test_underscores_are_hyphens(self, tmp_path: Path) -> None:
        """Both spellings are met in TOML files."""
        assert loaded(tmp_path, "max_new_tokens = 4") == {"run": {"max_new_tokens": 4}}

    def test_a_table_is_for_the_command_of_its_name(self, tmp_path: Path) -> None:
        """Also two words deep."""
        assert loaded(tmp_path, '[run]\ntimeout = 2\n[demo]\nout = "d"\n[model.build]\nseed = 7\n') == {
            "run": {"timeout": 2},
            "demo": {"out": "d"},
            "model": {"build": {"seed": 7}},
        }

    def test_dotted_keys_and_inline_tables_are_the_same_thing(self, tmp_path: Path) -> None:
        """They are to TOML."""
        assert loaded(tmp_path, 'demo = {out = "d"}\nrun.timeout = 1\n') == {
            "demo": {"out": "d"},
            "run": {"timeout": 1},
        }

    def test_backends_may_be_a_list(self, tmp_path: Path) -> None:
        """TOML has lists; the command line has commas."""
        assert loaded(tmp_path, 'backends = ["hf-fp32", "sim-gptq"]') == {"run": {"backends": "hf-fp32,sim-gptq"}}

    def test_a_byte_order_mark_is_allowed(self, tmp_path: Path) -> None:
        """Windows editors write one."""
        (tmp_path / "gptq-diff.toml").write_bytes(b"\xef\xbb\xbftimeout = 1")
        assert loaded(tmp_path) == {"run": {"timeout": 1}}


class TestWhichWins:
    """Command line over project over user; the first is shown in tests/cli/test_shell.py."""

    def test_pyproject_is_read_where_there_is_no_file_of_ours(self, tmp_path: Path) -> None:
        """`[tool.gptq-diff]`, with the same tables below it."""
        content = "[tool.gptq-diff]\ntimeout = 1\n[tool.gptq-diff.model.build]\nseed = 2\n[tool.other]\nseed = 3\n"
        assert loaded(tmp_path, pyproject=content) == {"run": {"timeout": 1}, "model": {"build": {"seed": 2}}}

    @pytest.mark.parametrize("pyproject", ["", "[project]\nname = 'x'\n", "tool = 3\n", "[tool.gptq-diff]\n"])
    def test_a_pyproject_without_options_gives_nothing(self, tmp_path: Path, pyproject: str) -> None:
        """Most have none."""
        assert loaded(tmp_path, pyproject=pyproject) == {}

    @pytest.mark.parametrize("own", ["", "timeout = 5\n"])
    def test_a_file_of_ours_replaces_pyproject_altogether(self, tmp_path: Path, own: str) -> None:
        """Two project files mixed could not be followed by a reader; pyproject.toml is not even parsed."""
        expected = {"run": {"timeout": 5}} if own else {}
        assert loaded(tmp_path, own, pyproject="[tool.gptq-diff]\ntimeout = 1\nmodel = 'x'\n") == expected
        assert loaded(tmp_path, own, pyproject="not TOML at all") == expected

    def test_the_project_wins_over_the_user_option_by_option(self, tmp_path: Path) -> None:
        """The user's others stay."""
        assert loaded(tmp_path, "timeout = 1\n", user="timeout = 2\noverwrite = true\n[model.build]\nseed = 3\n") == {
            "run": {"timeout": 1, "overwrite": True},
            "model": {"build": {"seed": 3}},
        }

    def test_parents_are_not_searched(self, tmp_path: Path) -> None:
        """A file two folders up must not change what a run means."""
        (tmp_path / "gptq-diff.toml").write_text("timeout = 1")
        (tmp_path / "below").mkdir()
        assert load(tmp_path / "below", tmp_path / "none", SETTINGS) == {}


UNSAFE = [
    ("python", '"/tmp/evil"', "'python' can run code or reach out"),
    ("interpreter", '"/tmp/evil"', "'interpreter' can run code or reach out"),
    ("env", '"mine"', "'env' can run code or reach out"),
    ("dir", '".envs"', "'dir' can run code or reach out"),
    ("torch-url", '"/tmp/evil"', "'torch-url' can run code or reach out"),
    ("trust-remote-code", "true", "'trust-remote-code' can run code or reach out"),
    ("trust_remote_code", "true", "'trust_remote_code' can run code or reach out"),
    ("trust-remote-code", "false", "'trust-remote-code' can run code or reach out"),
    ("download", "true", "'download' can run code or reach out"),
    ("base-url", '"x"', "'base-url' can run code or reach out"),
    ("api_key_file", '"~/.ssh/id"', "'api_key_file' can run code or reach out"),
    ("api-key", '"x"', "'api-key' can run code or reach out"),
    ("backends", '"hf-fp16@/tmp/evil"', "'backends' names an interpreter, which can run code"),
    ("backends", '["hf-fp32", "hf-fp16@/tmp/evil"]', "'backends' names an interpreter, which can run code"),
    ("model", '"https://evil.example/m"', "'model' holds a URL, which can reach out"),
    ("model", '" S3://evil/m"', "'model' holds a URL, which can reach out"),
]


class TestUnsafeInAProject:
    """What can run code or reach out is for the command line and the user's own file."""

    @pytest.mark.parametrize(("key", "value", "reason"), UNSAFE)
    def test_it_is_refused_with_its_line(self, tmp_path: Path, key: str, value: str, reason: str) -> None:
        """A cloned repository must not choose an interpreter."""
        message, hint = refused(tmp_path, f"# a comment\ntimeout = 1\n\n{key} = {value}\n")
        assert message == f"gptq-diff.toml, line 4: {reason}, and is not taken from a project's file"
        assert hint == PLACES

    @pytest.mark.parametrize("table", ["[tool.gptq-diff]", "[tool.gptq-diff.run]", "[tool.gptq-diff.demo]"])
    def test_so_it_is_in_pyproject_and_in_every_table(self, tmp_path: Path, table: str) -> None:
        """Another table is no way round."""
        message, _ = refused(tmp_path, pyproject=f"[tool.ruff]\ndownload = 1\n{table}\ndownload = true\n")
        assert message == (
            "pyproject.toml, line 4: 'download' can run code or reach out, and is not taken from a project's file"
        )

    @pytest.mark.parametrize(
        "content",
        [
            "run = {timeout = 1, download = true}",
            '"run"."download" = true',
            "[run]\n'download' = true",
            "run.download=true",
        ],
    )
    def test_no_spelling_gets_round_it(self, tmp_path: Path, content: str) -> None:
        """The parsed values are looked at, not the text."""
        message, _ = refused(tmp_path, content)
        assert "'download' can run code or reach out" in message

    def test_the_users_own_file_may_hold_them(self, tmp_path: Path) -> None:
        """It is as trusted as the command line."""
        user = 'trust-remote-code = true\ndownload = true\nbackends = "hf-fp16@/opt/python"\n'
        assert loaded(tmp_path, user=user) == {
            "run": {"trust_remote_code": True, "download": True, "backends": "hf-fp16@/opt/python"}
        }

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model", "user@host"),
            ("out", "a:b//c"),
            ("max-new-tokens", 4),
            ("backends", ["hf-fp32"]),
            ("prompt-file", "p.txt"),
        ],
    )
    def test_harmless_values_are_let_through(self, key: str, value: object) -> None:
        """An @ outside `backends` is a file name."""
        assert unsafe(key, value) is None


class TestRefusals:
    """Everything else that a file may get wrong."""

    @pytest.mark.parametrize(
        ("content", "line", "said", "command"),
        [
            ("max-new-token = 4", 1, "unknown option 'max-new-token'; did you mean 'max-new-tokens'?", "run"),
            ("zzz = 4", 1, "unknown option 'zzz'", "run"),
            ("timeout = 1\n[demmo]\nout = 1", 2, "unknown option 'demmo'; did you mean 'demo'?", "run"),
            ("[demo]\nmodel = 'x'", 2, "unknown option 'model'", "demo"),
            ("[model]\n\nbiuld = 1", 3, "unknown option 'biuld'; did you mean 'build'?", "model"),
            ("[model.build]\nbits = 4\nsede = 1", 3, "unknown option 'sede'; did you mean 'seed'?", "model build"),
            ("timeout = [\n1,\n]\n", 1, "'timeout' must be a number", None),
        ],
    )
    def test_the_line_and_the_nearest_name_are_given(
        self, tmp_path: Path, content: str, line: int, said: str, command: str | None
    ) -> None:
        """An option spelt wrongly would otherwise quietly not hold."""
        message, hint = refused(tmp_path, content)
        assert message == f"gptq-diff.toml, line {line}: {said}"
        assert hint == (f"See the options in gptq-diff {command} --help." if command else "Mend the value.")

    def test_the_users_file_is_checked_as_well(self, tmp_path: Path) -> None:
        """Under its own name."""
        message, _ = refused(tmp_path, user="\nzzz = 1")
        assert message == "user.toml, line 2: unknown option 'zzz'"

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("max-new-tokens = '4'", "'max-new-tokens' must be an integer"),
            ("max-new-tokens = true", "'max-new-tokens' must be an integer"),
            ("max-new-tokens = 4.0", "'max-new-tokens' must be an integer"),
            ("timeout = true", "'timeout' must be a number"),
            ("overwrite = 1", "'overwrite' must be true or false"),
            ("overwrite = 'yes'", "'overwrite' must be true or false"),
            ("model = 3", "'model' must be a string"),
            ("model = ['a']", "'model' must be a string"),
            ("model = 2020-01-01", "'model' must be a string"),
            ("timeout = {a = 1}", "'timeout' must be a number"),
            ("backends = [1]", "'backends' must be a string or a list of strings"),
            ("capture-budget = 1.5", "'capture-budget' must be a string or an integer"),
        ],
    )
    def test_a_value_of_another_type(self, tmp_path: Path, content: str, said: str) -> None:
        """Typer would turn `true` into the integer 1."""
        message, hint = refused(tmp_path, "\n" + content)
        assert (message, hint) == (f"gptq-diff.toml, line 2: {said}", "Mend the value.")

    @pytest.mark.parametrize(
        "content", ["timeout = 1\n[run]\ntimeout = 2\n", "max-new-tokens = 1\n[run]\nmax_new_tokens = 2\n"]
    )
    def test_an_option_given_twice(self, tmp_path: Path, content: str) -> None:
        """Once at the top and once under [run], or in both spellings; TOML itself does not see it."""
        message, hint = refused(tmp_path, content)
        key = content.splitlines()[2].split(" ")[0]
        assert message == f"gptq-diff.toml, line 3: {key!r} is given twice for run"
        assert hint == "Keep one of the two."

    def test_bad_toml_names_line_and_column(self, tmp_path: Path) -> None:
        """As tomllib says it."""
        message, hint = refused(tmp_path, "timeout = 1\nmodel = \n")
        assert message == "gptq-diff.toml: bad TOML: invalid value (at line 2, column 9)"
        assert hint == "Mend the file, or remove it."

    @pytest.mark.parametrize("content", ["timeout = " + "9" * 5000, "timeout = " + "[" * 100_000])
    def test_absurd_toml_is_no_crash(self, tmp_path: Path, content: str) -> None:
        """A hostile file must not end in a traceback."""
        message, _ = refused(tmp_path, content)
        assert message.startswith("gptq-diff.toml: bad TOML: ")

    def test_a_file_that_is_not_utf8(self, tmp_path: Path) -> None:
        """TOML is UTF-8 by definition."""
        (tmp_path / "gptq-diff.toml").write_bytes(b"model = '\xff'")
        message, hint = refused(tmp_path)
        assert (message, hint) == ("gptq-diff.toml: not UTF-8 at offset 9", "Save the file as UTF-8.")

    def test_a_directory_in_its_place(self, tmp_path: Path) -> None:
        """The system's own reason is passed on."""
        (tmp_path / "gptq-diff.toml").mkdir()
        message, hint = refused(tmp_path)
        assert message == "gptq-diff.toml cannot be read: Is a directory"
        assert hint == "Mend its permissions, or remove it."

    def test_a_table_that_is_none(self, tmp_path: Path) -> None:
        """`tool.gptq-diff = 3`."""
        message, hint = refused(tmp_path, pyproject="[tool]\ngptq-diff = 3\n")
        assert message == "pyproject.toml: tool.gptq-diff is not a table"
        assert hint == "Write [tool.gptq-diff] and options below it."


@pytest.mark.parametrize(
    ("text", "keys", "line"),
    [
        ("a = 1\nb = 2", ("b",), 2),
        ('a = """\nb = 2\n"""\nb = 3', ("b",), 4),
        ("a = [\n 1,\n 2]\nb = [\n1]\n", ("b",), 4),
        ("[t]\n# note\n\nb = 2\n", ("t", "b"), 4),
        ("b = 1\n[t]\nb = 2\n", ("t", "b"), 3),
        ("[t]\nb = 1\n[t.u]\nb = 2", ("t", "u", "b"), 4),
        ("t = {a = 1, b = 2}", ("t", "b"), 1),
        ("t.a = 1\r\nt.b = 2\r\n", ("t", "b"), 2),
        ('"b" = 1', ("b",), 1),
    ],
)
def test_the_line_of_a_key_is_found_however_it_is_written(
    tmp_path: Path, text: str, keys: tuple[str, ...], line: int
) -> None:
    """tomllib gives no places, and a search by pattern would be fooled by strings and tables."""
    path = tmp_path / "f.toml"
    path.write_bytes(text.encode())
    file = read_toml(path)
    assert file is not None
    assert str(file.error(keys, "wrong", "hint")) == f"{path}, line {line}: wrong"
