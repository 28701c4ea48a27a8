"""One entry of a prompt file or a case file: what it may hold, and the sentence for what it may not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptq_diff.errors import PromptError
from gptq_diff.suggest import nearest

FORMS = (
    'An entry is a string, {"prompt": "..."}, {"messages": [...]} or {"token_ids": [...]}, each with an optional "id".'
)
_KEYS = ("id", "prompt", "messages", "token_ids")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Message:
    """One turn of a chat: `role` ("system", "user", "assistant", ...) and its text."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptEntry:
    """One entry as it was written, before a tokenizer has seen it; exactly one of the last three is not None.

    id: its own name, or `p1`, `p2`, ... by its place in the file; fit for a path.
    source: the file's name, for error messages.
    line: where it starts in the file, counted from 1.
    text: plain text.
    messages: a chat, for the model's chat template.
    token_ids: fed to the model as they are.
    """

    id: str
    source: str
    line: int
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    token_ids: tuple[int, ...] | None = None

    def error(self, reason: str, hint: str | None = None) -> PromptError:
        """An error that names file, line and this prompt."""
        return PromptError(f"{self.source}, line {self.line}: prompt {self.id!r} {reason}", hint)


def parse_entry(value: object, *, number: int, source: str, line: int) -> PromptEntry:
    """Check one decoded JSON or TOML value; `number`, from 1, gives the default id. PromptError says what is wrong."""
    entry = PromptEntry(id=f"p{number}", source=source, line=line)
    if isinstance(value, str):
        return _with(entry, text=_text(value, entry, "prompt"))
    if not isinstance(value, dict):
        raise entry.error(f"is {_kind(value)}", FORMS)
    for key in value:
        if key not in _KEYS:
            raise entry.error(f"has an unknown key {key!r}{nearest(str(key), _KEYS)}", FORMS)
    if "id" in value:
        entry = _with(entry, id=_checked_id(value["id"], entry))
    given = [key for key in _KEYS[1:] if key in value]
    if len(given) != 1:
        what = f"has both {given[0]!r} and {given[1]!r}" if given else "has neither text, messages nor token ids"
        raise entry.error(what, FORMS)
    content = value[given[0]]
    if given[0] == "prompt":
        return _with(entry, text=_text(content, entry, "prompt"))
    if given[0] == "messages":
        return _with(entry, messages=_messages(content, entry))
    return _with(entry, token_ids=_token_ids(content, entry))


def _with(
    entry: PromptEntry,
    *,
    id: str | None = None,  # noqa: A002  the record's own field
    text: str | None = None,
    messages: tuple[Message, ...] | None = None,
    token_ids: tuple[int, ...] | None = None,
) -> PromptEntry:
    return PromptEntry(id or entry.id, entry.source, entry.line, text, messages, token_ids)


def _checked_id(value: object, entry: PromptEntry) -> str:
    if not isinstance(value, str):
        raise entry.error(f"has an id that is {_kind(value)}", 'Give "id" as a string.')
    if not _ID.fullmatch(value):
        raise entry.error(
            f"has the id {value!r}, which cannot name a folder",
            "An id has at most 100 letters, digits, dots, underscores and hyphens, and starts with none of . and -.",
        )
    return value


def _text(value: object, entry: PromptEntry, key: str) -> str:
    if not isinstance(value, str):
        raise entry.error(f"has {_kind(value)} as its {key}", FORMS)
    if not value.strip():
        raise entry.error(f"has an empty {key}", "Write some text, or token ids where blanks alone are meant.")
    return _encodable(value, entry)


def _encodable(value: str, entry: PromptEntry) -> str:
    # JSON can spell half a surrogate pair ("\ud83d"); no tokenizer takes it.
    lone = _SURROGATE.search(value)
    if lone:
        raise entry.error(f"holds half a surrogate pair, \\u{ord(lone[0]):04x}", "Write the whole character, as UTF-8.")
    return value


def _messages(value: object, entry: PromptEntry) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise entry.error(f"has {_kind(value)} as its messages", 'Write [{"role": "user", "content": "..."}].')
    if not value:
        raise entry.error("has no messages", 'Write [{"role": "user", "content": "..."}].')
    return tuple(_message(message, number, entry) for number, message in enumerate(value, start=1))


def _message(value: object, number: int, entry: PromptEntry) -> Message:
    hint = 'A message is {"role": "user", "content": "..."} and nothing else.'
    if not isinstance(value, dict):
        raise entry.error(f"has {_kind(value)} as message {number}", hint)
    for key in value:
        if key not in ("role", "content"):
            raise entry.error(f"has an unknown key {key!r} in message {number}", hint)
    for key in ("role", "content"):
        if key not in value:
            raise entry.error(f"has no {key} in message {number}", hint)
        if not isinstance(value[key], str):
            raise entry.error(f"has {_kind(value[key])} as the {key} of message {number}", hint)
    if not value["role"]:
        raise entry.error(f"has an empty role in message {number}", hint)
    return Message(value["role"], _encodable(value["content"], entry))


def _token_ids(value: object, entry: PromptEntry) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise entry.error(f"has {_kind(value)} as its token_ids", "Write a list of integers: [1, 15, 7].")
    if not value:
        raise entry.error("has no token ids", "Write a list of integers: [1, 15, 7].")
    for place, token in enumerate(value):
        # bool is an int to Python, and true is no token.
        if not isinstance(token, int) or isinstance(token, bool):
            raise entry.error(f"has {_kind(token)} at place {place} of token_ids", "Write a list of integers.")
    return tuple(value)


def _kind(value: object) -> str:
    """A value's kind in JSON's words, with an article."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
