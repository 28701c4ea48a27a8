"""Prompt files: bytes to entries with line numbers; no tokenizer, no torch.

The name's ending decides: `.txt` is one prompt, the whole file as it is (a last newline included); `.jsonl` one entry a
line; `.json` a list of entries. Standard input (`-`) has no name, so its first character other than white space does:
`[` begins a JSON list, `{` or `"` JSON lines, anything else is one prompt.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from gptq_diff.errors import PromptError
from gptq_diff.prompts.entries import FORMS, PromptEntry, parse_entry

_Form = Literal["text", "lines", "list"]
_FORM_OF: dict[str, _Form] = {".txt": "text", ".jsonl": "lines", ".json": "list"}
_BLANK = re.compile(r"[ \t\r\n]*")  # JSON's own white space, and no other


def read_prompt_file(path: str, stdin: BinaryIO) -> tuple[PromptEntry, ...]:
    """The entries of a prompt file, or of `stdin` where `path` is `-`, in order; at least one.

    PromptError names file, line and reason: unreadable, empty, not UTF-8, not JSON, an entry of no known form, two
    entries of one id.
    """
    if path == "-":
        source, data = "standard input", stdin.read()
        text = _decoded(data, source)
        form = _guessed(text)
    else:
        source = path
        form = _form_of(path)
        text = _decoded(_bytes_of(path), source)
    if not text.strip():
        raise PromptError(f"{source} is empty", "Write at least one prompt into it.")
    if form == "text":
        return (parse_entry(text, number=1, source=source, line=1),)
    values = _lines(text, source) if form == "lines" else _list(text, source)
    entries = tuple(
        parse_entry(value, number=number, source=source, line=line)
        for number, (line, value) in enumerate(values, start=1)
    )
    if not entries:
        raise PromptError(f"{source} holds an empty list", FORMS)
    return _distinct(entries)


def _form_of(path: str) -> _Form:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORM_OF:
        raise PromptError(
            f"{path}: a prompt file ends in .txt, .jsonl or .json, not in {suffix!r}",
            "Rename it, or give it on standard input with --prompt-file -.",
        )
    return _FORM_OF[suffix]


def _guessed(text: str) -> _Form:
    first = text.lstrip()[:1]
    return "list" if first == "[" else "lines" if first in ("{", '"') else "text"


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}", "Give an existing prompt file.") from error


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # a byte-order mark is allowed and is no part of the prompt
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = "Save the file as UTF-8."
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = "It looks like UTF-16. " + hint
        raise PromptError(
            f"{source}, line {line}: not UTF-8, byte 0x{data[error.start]:02x} at offset {error.start}", hint
        ) from error


def _lines(text: str, source: str) -> Iterator[tuple[int, object]]:
    """(line, value) of every line that is not blank. Only a line feed ends a line: JSON strings may hold U+2028."""
    for number, line in enumerate(text.split("\n"), start=1):
        begin = _after_blank(line, 0)
        if begin == len(line):
            continue
        value, end = _value(line, begin, source, first_line=number)
        end = _after_blank(line, end)
        if end != len(line):
            raise _bad_json("something follows the entry", line, end, source, first_line=number)
        yield number, value


def _list(text: str, source: str) -> Iterator[tuple[int, object]]:
    """(line, value) of every element; read one at a time, since json.loads would forget where each began."""
    at = _after_blank(text, 0)
    if text[at] != "[":
        raise _bad_json("expected a list, [", text, at, source)
    at = _after_blank(text, at + 1)
    if text[at : at + 1] != "]":
        while True:
            line = text.count("\n", 0, at) + 1
            value, end = _value(text, at, source)
            yield line, value
            at = _after_blank(text, end)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise _bad_json("expected , or ]", text, at, source)
            at = _after_blank(text, at + 1)
    at = _after_blank(text, at + 1)
    if at != len(text):
        raise _bad_json("something follows the list", text, at, source)


def _after_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None  # the pattern takes the empty string
    return match.end()


def _value(text: str, at: int, source: str, *, first_line: int = 1) -> tuple[object, int]:
    """The JSON value that begins at `at`, and where it ends."""
    try:
        return json.JSONDecoder(object_pairs_hook=_object).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _bad_json(error.msg, text, error.pos, source, first_line=first_line) from error
    except (ValueError, RecursionError) as error:  # a key given twice, an integer of over 4300 digits, nesting too deep
        raise _bad_json(str(error), text, at, source, first_line=first_line) from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    known: dict[str, object] = {}
    for key, value in pairs:
        if key in known:
            raise ValueError(f"the key {key!r} is given twice")
        known[key] = value
    return known


def _bad_json(reason: str, text: str, at: int, source: str, *, first_line: int = 1) -> PromptError:
    line = first_line + text.count("\n", 0, at)
    column = at - text.rfind("\n", 0, at)
    if source == "standard input":
        hint = 'Text that begins with [, { or " is taken for JSON there; write such a prompt as a JSON string.'
    else:
        hint = FORMS
    return PromptError(f"{source}, line {line}, column {column}: bad JSON: {reason[:1].lower()}{reason[1:]}", hint)


def _distinct(entries: tuple[PromptEntry, ...]) -> tuple[PromptEntry, ...]:
    first: dict[str, PromptEntry] = {}
    for entry in entries:
        if entry.id in first:
            taken = first[entry.id].line
            raise PromptError(
                f"{entry.source}, line {entry.line}: the id {entry.id!r} is already that of line {taken}",
                "Give each prompt an id of its own; without one it is p1, p2, ... by its place.",
            )
        first[entry.id] = entry
    return entries
