"""The API key: from a file or a variable that the user names, sent in one header, never shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptq_diff.errors import UsageError

HIDDEN = "[key]"


class ApiKey:
    """A key that shows itself to nobody but who asks for its header."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return HIDDEN

    def header(self) -> dict[str, str]:
        """What goes with every request."""
        return {"Authorization": f"Bearer {self._text}"}

    def hidden_in(self, text: str) -> str:
        """The text without the key: servers repeat it in their error messages."""
        return text.replace(self._text, HIDDEN)


def read_key(file: Path | None, variable: str | None, environment: Mapping[str, str]) -> ApiKey | None:
    """The key of --api-key-file or --api-key-env, None where neither was given; UsageError where it cannot be one."""
    if file is not None and variable is not None:
        raise UsageError("--api-key-file and --api-key-env are given both", "Keep one of the two.")
    if file is not None:
        return _checked(_text_of(file), f"--api-key-file {file}")
    if variable is None:
        return None
    if variable not in environment:
        raise UsageError(f"--api-key-env: there is no variable {variable}", "Give the variable's name, not the key.")
    return _checked(environment[variable], f"the variable {variable} of --api-key-env")


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file {file} is no text", "It is to hold the key and nothing else.") from None


def _checked(text: str, where: str) -> ApiKey:
    key = text.strip()
    if not key:
        raise UsageError(f"{where} is empty", "It is to hold the key and nothing else.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{where} holds what no key can: blanks, several lines, or letters beyond ASCII")
    return ApiKey(key)
