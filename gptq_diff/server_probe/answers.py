"""What a server answered to one question, whatever of it the server tells."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Endpoint(str, enum.Enum):
    """Which of OpenAI's two ways to ask."""

    CHAT = "chat"
    COMPLETIONS = "completions"

    @property
    def path(self) -> str:
        """Below the API's place."""
        return "/chat/completions" if self is Endpoint.CHAT else "/completions"


class NotAnAnswer(Exception):  # noqa: N818  an outcome of reading
    """The body is no answer of this API; `str(error)` says why."""


@dataclass(frozen=True)
class Answer:
    """One answer; None stands for what the server does not tell.

    text: what it wrote, reasoning included. ids: of the generated tokens (vLLM's return_token_ids).
    tokens: their texts or bytes, from the log probabilities. logprobs: of the token chosen at each step, NaN and None
    as they came. finish: stop, length, ... . prompt_tokens, completion_tokens, cached_tokens: the server's own counts,
    the last of the prompt's tokens that a prefix cache answered for.
    """

    text: str
    ids: tuple[int, ...] | None = None
    tokens: tuple[str, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def length(self) -> int | None:
        """Generated tokens, by the best count that there is."""
        for each in (self.ids, self.tokens):
            if each is not None:
                return len(each)
        return self.completion_tokens


def read_answer(body: bytes, endpoint: Endpoint) -> Answer:
    """The answer in a body of `/chat/completions` or `/completions`. NaN as a bare word is taken: Python writes it."""
    data = read_json(body)
    if not isinstance(data, dict):
        raise NotAnAnswer("it is no JSON object")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NotAnAnswer("it has no choices")
    choice = choices[0]
    text = _chat_text(choice) if endpoint is Endpoint.CHAT else choice.get("text")
    if not isinstance(text, str):
        raise NotAnAnswer("its first choice has no text")
    usage = _mapping(data.get("usage"))
    tokens, logprobs = _logprobs(choice.get("logprobs"))
    ids = choice.get("token_ids")
    finish = choice.get("finish_reason")
    return Answer(
        text,
        tuple(ids) if isinstance(ids, list) and ids and all(type(each) is int for each in ids) else None,
        tokens,
        logprobs,
        finish if isinstance(finish, str) else None,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        _count(_mapping(usage.get("prompt_tokens_details")), "cached_tokens"),
    )


def read_json(body: bytes) -> Any:
    """What is in it; NotAnAnswer where that is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise NotAnAnswer("it is no JSON") from None


def _chat_text(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    if not isinstance(message, dict):
        return None
    # A reasoning model's first tokens are in a field of their own, called either way, and `content` may be null.
    parts = [message.get(name) for name in ("reasoning_content", "reasoning", "content")]
    return "".join(part for part in parts if isinstance(part, str))


def _logprobs(given: Any) -> tuple[tuple[str, ...] | None, tuple[float | None, ...] | None]:
    """Tokens and log probabilities of either form, {"content": [{...}]} or {"tokens": [], "token_logprobs": []}."""
    given = _mapping(given)
    steps = given.get("content")
    if isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps):
        return tuple(_token(step) for step in steps), tuple(_logprob(step.get("logprob")) for step in steps)
    tokens, values = given.get("tokens"), given.get("token_logprobs")
    if isinstance(tokens, list) and isinstance(values, list) and tokens:
        return tuple(str(token) for token in tokens), tuple(_logprob(value) for value in values)
    return None, None


def _token(step: Mapping[str, Any]) -> str:
    """Its bytes where they are told: several tokens may show as one replacement character."""
    raw: Sequence[Any] | None = step.get("bytes")
    if isinstance(raw, list) and raw and all(type(each) is int and 0 <= each < 256 for each in raw):
        return bytes(raw).decode("utf-8", "backslashreplace")
    return str(step.get("token", ""))


def _logprob(value: Any) -> float | None:
    if isinstance(value, str):  # "NaN", as some writers of JSON put it
        return math.nan if value.lower() == "nan" else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None
