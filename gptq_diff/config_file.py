"""Options from files: a project's and the user's own.

A project's are in `gptq-diff.toml` in the current directory or, where that does not exist, in `[tool.gptq-diff]` of
`pyproject.toml`; the two are never mixed. The user's are in `$XDG_CONFIG_HOME/gptq-diff/config.toml`. The command line
wins over the project's, and those over the user's.

Top-level keys are the options of `run`, spelt as on the command line without the two hyphens; a table named for a
command (`[demo]`, `[model.build]`) holds the options of that command.

A project's file comes with other people's code, so what can run code or reach out is refused in it (`unsafe`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from gptq_diff.suggest import nearest
from gptq_diff.toml_file import TomlFile, read_toml

PROJECT_FILE = "gptq-diff.toml"
MAIN_COMMAND = "run"

Value = Union[bool, int, float, str]
Defaults = dict[str, Union[Value, "Defaults"]]

TRUSTED_PLACES = "Give it on the command line, or in $XDG_CONFIG_HOME/gptq-diff/config.toml."

_UNSAFE_KEYS = (
    "python",
    "interpreter",
    "env",
    "dir",
    "sdist",
    "sources",
    "trust-remote-code",
    "download",
    "url",
    "key",
    "key-file",
)
_UNSAFE_ENDINGS = ("-url", "-key", "-key-file")
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list of strings"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Setting:
    """One option that a config file may give.

    param: the name that the command's function has for it.
    kinds: TOML types that are taken: bool, int, float, str; list for several strings, which are joined with commas.
    """

    param: str
    kinds: tuple[type, ...]


Settings = Mapping[tuple[str, ...], Mapping[str, Setting]]
"""Command path (`("model", "build")`) -> option without its hyphens -> what it takes."""


def load(directory: Path, user_file: Path, settings: Settings) -> Defaults:
    """Defaults for every command, nested as commands are: `{"run": {"seed": 1}, "model": {"build": {...}}}`.

    directory: where a project's file is looked for; its parents are not.
    user_file: the user's own file, which need not exist.
    UsageError names file and line of whatever is unknown, of the wrong type, or not for a project's file to say.
    """
    defaults: Defaults = {}
    for file, trusted in ((read_toml(user_file), True), (_project(directory), False)):
        if file is not None:
            for command, values in _Reader(file, settings, trusted=trusted).read().items():
                _merge(defaults, command, values)
    return defaults


def unsafe(key: str, value: object) -> str | None:
    """Why a file that came with a project may not hold this option; None where it may. For case files too."""
    name = key.replace("_", "-").lower()
    if name in _UNSAFE_KEYS or name.endswith(_UNSAFE_ENDINGS):
        return f"{key!r} can run code or reach out"
    values = value if isinstance(value, list) else [value]
    for text in values:
        if isinstance(text, str) and _URL.match(text.strip()):
            return f"{key!r} holds a URL, which can reach out"
        if isinstance(text, str) and name == "backends" and "@" in text:
            return f"{key!r} names an interpreter, which can run code"
    return None


def _project(directory: Path) -> TomlFile | None:
    return read_toml(directory / PROJECT_FILE) or read_toml(directory / "pyproject.toml", ("tool", "gptq-diff"))


class _Reader:
    """Sorts one file's options by command, and checks each."""

    def __init__(self, file: TomlFile, settings: Settings, *, trusted: bool) -> None:
        self._file = file
        self._settings = settings
        self._trusted = trusted
        self._found: dict[tuple[str, ...], dict[str, Value]] = {}

    def read(self) -> dict[tuple[str, ...], dict[str, Value]]:
        self._table((), self._file.table)
        return self._found

    def _table(self, at: tuple[str, ...], table: Mapping[str, object]) -> None:
        for key, value in table.items():
            here = (*at, key)
            if isinstance(value, dict) and any(path[: len(here)] == here for path in self._settings):
                self._table(here, value)
            else:
                self._option(here, value)

    def _option(self, here: tuple[str, ...], value: object) -> None:
        *above, key = here
        command = tuple(above) or (MAIN_COMMAND,)
        reason = None if self._trusted else unsafe(key, value)
        if reason:
            raise self._file.error(here, f"{reason}, and is not taken from a project's file", TRUSTED_PLACES)
        options = self._settings.get(command, {})
        setting = options.get(key.replace("_", "-"))
        if setting is None:
            depth = len(above)
            below = {path[depth] for path in self._settings if len(path) > depth and path[:depth] == here[:depth]}
            guess = nearest(key.replace("_", "-"), [*options, *sorted(below)])
            raise self._file.error(
                here, f"unknown option {key!r}{guess}", f"See the options in gptq-diff {' '.join(command)} --help."
            )
        values = self._found.setdefault(command, {})
        if setting.param in values:
            raise self._file.error(here, f"{key!r} is given twice for {' '.join(command)}", "Keep one of the two.")
        values[setting.param] = self._checked(here, value, setting)

    def _checked(self, here: tuple[str, ...], value: object, setting: Setting) -> Value:
        # By exact type: bool is an int to Python, and `seed = true` is a slip.
        if isinstance(value, (bool, int, float, str)) and type(value) in setting.kinds:
            return value
        if type(value) is int and float in setting.kinds:
            return value
        if isinstance(value, list) and list in setting.kinds and all(isinstance(item, str) for item in value):
            return ",".join(value)
        wanted = " or ".join(_WORDS[kind] for kind in setting.kinds)
        raise self._file.error(here, f"{here[-1]!r} must be {wanted}", "Mend the value.")


def _merge(defaults: Defaults, command: tuple[str, ...], values: Mapping[str, Value]) -> None:
    table = defaults
    for name in command:
        below = table.setdefault(name, {})
        assert isinstance(below, dict)  # a command's name is never an option's: settings come from one program
        table = below
    table.update(values)
