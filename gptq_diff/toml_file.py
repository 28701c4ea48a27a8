"""A TOML file whose errors name the line; for config files and case files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class TomlFile:
    """A file that has been read, and the table in it that is ours.

    prefix: keys that lead to the table; empty where the whole file is ours.
    """

    path: Path
    text: str
    prefix: tuple[str, ...]
    table: dict[str, object]

    def line(self, keys: tuple[str | int, ...]) -> int:
        """The line, from 1, on which `keys`, from our table on, get their value; an integer is a place in a list."""
        return _line_of(self.text, (*self.prefix, *keys))

    def error(self, keys: tuple[str | int, ...], reason: str, hint: str) -> UsageError:
        """An error that names the file and the line on which `keys` get their value."""
        return UsageError(f"{self.path}, line {self.line(keys)}: {reason}", hint)


def read_toml(path: Path, prefix: tuple[str, ...] = ()) -> TomlFile | None:
    """The file, or None where it does not exist or holds no table of ours. UsageError where it cannot be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: object = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Mend its permissions, or remove it.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at offset {error.start}", "Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, an integer of over 4300 digits, nesting too deep
        reason = str(error)
        raise UsageError(
            f"{path}: bad TOML: {reason[:1].lower()}{reason[1:]}", "Mend the file, or remove it."
        ) from error
    for key in prefix:
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return None
    if not isinstance(found, dict):
        raise UsageError(
            f"{path}: {'.'.join(prefix)} is not a table", f"Write [{'.'.join(prefix)}] and options below it."
        )
    return TomlFile(path, text, prefix, found)


def _line_of(text: str, keys: tuple[str | int, ...]) -> int:
    """The line, from 1, on which the statement begins that gives `keys` a value.

    tomllib reports no places. So the file is read again line by line: the first beginning of it that parses and holds
    the key ends with that statement, and the one before it that parses ends just above.
    """
    lines = text.split("\n")
    above = 0
    for count in range(1, len(lines) + 1):
        try:
            found: object = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        for key in keys:
            found = _in(found, key)
        if found is not None:
            return above + 1
        above = count
    return 1  # not reached for a key of this text


def _in(found: object, key: str | int) -> object:
    """What stands there; None where nothing does."""
    if isinstance(key, int):
        return found[key] if isinstance(found, list) and key < len(found) else None
    return found.get(key) if isinstance(found, dict) else None
