"""One table of a case file, read key by key, with the line of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptq_diff.config_file import unsafe
from gptq_diff.errors import UsageError
from gptq_diff.suggest import nearest
from gptq_diff.toml_file import TomlFile

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""What a case can be called: its folder is called the same."""
SEE = "docs/cases.md says what a case file holds"
ELSEWHERE = "give it on the command line"


@dataclass(frozen=True)
class Table:
    """A table of the file. at: keys that lead to it; an integer is a place in a list of tables."""

    file: TomlFile
    at: tuple[str | int, ...]
    values: Mapping[str, object]

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.file.line(self.at)

    def error(self, key: str | None, reason: str, hint: str) -> UsageError:
        """About the value of a key, or the table itself."""
        return self.error_at((*self.at, key) if key is not None else self.at, reason, hint)

    def error_at(self, keys: tuple[str | int, ...], reason: str, hint: str) -> UsageError:
        """About what stands at those keys of the file."""
        return self.file.error(keys, reason, hint)

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return key in self.values

    def only(self, known: Sequence[str]) -> None:
        """UsageError for a key that is not known, or that a file of other people may not hold."""
        for key, value in self.values.items():
            reason = None if isinstance(value, dict) else unsafe(key, value)
            if reason is not None:
                raise self.error(key, f"{reason}, and is not taken from a case file", ELSEWHERE)
            if key not in known:
                raise self.error(key, f"unknown key {key!r}{nearest(key, known)}", f"known: {', '.join(known)}")

    def table(self, key: str) -> Table:
        """The table below that key; it must be there."""
        value = self._given(key, "a table", f"write [{'.'.join(str(k) for k in (*self.at, key))}] and keys below it")
        if not isinstance(value, dict):
            raise self.error(key, f"{key!r} must be a table", SEE)
        return Table(self.file, (*self.at, key), value)

    def tables(self, key: str) -> list[Table]:
        """The tables of a list, at least one."""
        value = self._given(key, "one or more", f"write [[{key}]] and keys below it")
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            raise self.error(key, f"{key!r} must be one or more tables", f"write [[{key}]] and keys below it")
        return [Table(self.file, (*self.at, key, number), one) for number, one in enumerate(value)]

    def text(self, key: str, default: str | None = None) -> str:
        """A string; of one that is not there the default, if there is any."""
        if default is not None and not self.has(key):
            return default
        value = self._given(key, "a string", SEE)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.error(key, f"{key!r} must be a string", "mend the value")
        return value

    def word(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        """One of the known words."""
        value = self.text(key, default)
        return self._known(key, value, known)

    def words(self, key: str, known: Sequence[str]) -> tuple[str, ...]:
        """One or more of the known words, as a list."""
        value = self._given(key, "a list of strings", SEE)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise self.error(key, f"{key!r} must be a list of strings", 'for example ["hf-fp16", "sim-gptq"]')
        return tuple(self._known(key, one, known) for one in value)

    def whole(self, key: str, default: int | None = None, least: int | None = None) -> int:
        """An integer."""
        if default is not None and not self.has(key):
            return default
        value = self._given(key, "an integer", SEE)
        if type(value) is not int:  # by exact type: bool is an int to Python, and `seed = true` is a slip
            raise self.error(key, f"{key!r} must be an integer", "mend the value")
        if least is not None and value < least:
            raise self.error(key, f"{key!r} is {value}, below {least}", "mend the value")
        return value

    def number(self, key: str) -> float:
        """A number."""
        value = self._given(key, "a number", SEE)
        if type(value) not in (int, float):
            raise self.error(key, f"{key!r} must be a number", "mend the value")
        assert isinstance(value, (int, float))
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{key!r} must be true or false", "mend the value")
        return value

    def _given(self, key: str, what: str, hint: str) -> object:
        if key not in self.values:
            raise self.error(None, f"{key!r} is missing, {what}", hint)
        return self.values[key]

    def _known(self, key: str, value: str, known: Sequence[str]) -> str:
        if value not in known:
            raise self.error(key, f"{value!r} is no {key} that is known{nearest(value, known)}",
                             f"known: {', '.join(known)}")  # fmt: skip
        return value
