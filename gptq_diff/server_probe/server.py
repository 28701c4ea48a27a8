"""A server as it shows itself: where its API is, which model, what it is willing to tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.server_probe.address import Address
from gptq_diff.server_probe.answers import Answer, Endpoint, NotAnAnswer, read_answer, read_json
from gptq_diff.server_probe.exchange import NoReply, Reply
from gptq_diff.server_probe.patience import Caller
from gptq_diff.server_probe.questions import Question
from gptq_diff.text import one_line

MAX_TOKENS = 16
"""Generated for each question; 4 are needed to judge."""

_NOT_THERE = frozenset((404, 405, 501))
_NO_LIKING = frozenset((400, 422))


class Refused(CannotJudge):
    """The server answered, and not with an answer; `str(error)` says what."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_be_nan(self) -> bool:
        """Whether it may be log probabilities that are NaN, which JSON cannot hold.

        vLLM has answered 500 then, and 400 with the words of Python's json since it makes one of every ValueError.
        """
        return self.status >= 500 or "not JSON compliant" in str(self)


@dataclass(frozen=True)
class Manner:
    """How a server wants to be asked; what it does not like is left out.

    extras: vLLM's own fields: token ids, special tokens shown, a salt for its prefix cache. logprobs: log
    probabilities. system_role: system messages.
    """

    endpoint: Endpoint
    extras: bool = True
    logprobs: bool = True
    system_role: bool = True


@dataclass(frozen=True)
class Found:
    """What the server says of itself. version: vLLM's, None elsewhere. context: tokens that fit, None if untold."""

    api: str
    model: str
    version: str | None
    context: int | None


class Server:
    """Asks one server, in the manner that it turned out to like."""

    def __init__(self, caller: Caller, address: Address, found: Found, manner: Manner) -> None:
        self.caller, self.address, self.found, self.manner = caller, address, found, manner
        self._counts = True

    def ask(self, question: Question, *, logprobs: bool = True, go_on: bool = False) -> Answer:
        """The answer to a question. go_on: past the end that the model sets. Refused, NoReply or OutOfTime else."""
        body = {
            "model": self.found.model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": False,
            **question.content(self.manner.endpoint, system_role=self.manner.system_role),
        }  # fmt: skip
        if self.manner.extras:
            body |= {"return_token_ids": True, "skip_special_tokens": False, "cache_salt": question.mark.salt}
            body |= {"ignore_eos": True} if go_on else {}
        if logprobs and self.manner.logprobs:
            body["logprobs"] = True if self.manner.endpoint is Endpoint.CHAT else 1
        reply = self._post(self.found.api + self.manner.endpoint.path, body)
        try:
            return read_answer(reply.body, self.manner.endpoint)
        except NotAnAnswer as error:
            raise Refused(f"what it answers cannot be used: {error}: {self._said(reply)}", reply.status) from None

    def settle(self, question: Question, *, may_change: bool) -> Answer:
        """The first answer; whatever the server does not like is left out from then on.

        may_change: the other endpoint may be taken where this one is not there.
        """
        while True:
            try:
                return self.ask(question)
            except Refused as error:  # noqa: PERF203  each is another way to ask
                manner = _milder(self.manner, error, may_change=may_change)
                if manner is None:
                    raise
                self.manner = manner

    def count(self, question: Question) -> int | None:
        """The prompt's tokens by vLLM's /tokenize, None where there is no such thing."""
        if not self._counts:
            return None
        content = question.content(self.manner.endpoint, system_role=self.manner.system_role)
        self._counts = False
        try:
            reply = self._post(f"{self.address.root}/tokenize", {"model": self.found.model, **content})
            count = read_json(reply.body)
        except (Refused, NoReply, NotAnAnswer):
            return None
        tokens = count.get("count") if isinstance(count, dict) else None
        self._counts = type(tokens) is int and tokens > 0
        return tokens if self._counts else None

    def _post(self, url: str, body: Mapping[str, Any]) -> Reply:
        reply = self.caller.call("POST", url, json.dumps(body).encode())
        if reply.status == 200:
            return reply
        raise refusal(reply, self._said(reply))

    def _said(self, reply: Reply) -> str:
        return said(reply, self.caller)


def said(reply: Reply, caller: Caller) -> str:
    """What a reply says to a person: the message of an error in JSON, else its beginning."""
    if not reply.body.strip():
        return "nothing"
    if reply.kind == "text/html" or reply.body.lstrip()[:1] == b"<":
        return "a web page"
    try:
        data = read_json(reply.body)
    except NotAnAnswer:
        return caller.exchange.shown(reply.body)
    for name in ("error", "message", "detail"):
        if isinstance(data, dict) and data.get(name):
            data = data[name]
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return one_line(caller.exchange.hidden(text), 160)


def refusal(reply: Reply, words: str) -> CannotJudge | UsageError:
    """The error that a reply other than 200 is."""
    if reply.status in (401, 403):
        return UsageError(
            f"the server wants another key (HTTP {reply.status}: {words})", "Give it by --api-key-file or --api-key-env"
        )
    if reply.status == 429:
        return Refused(f"the server takes no more questions for now (HTTP 429: {words})", 429)
    return Refused(f"HTTP {reply.status}: {words}", reply.status)


def _milder(manner: Manner, error: Refused, *, may_change: bool) -> Manner | None:
    """The next manner to try after a refusal, None where it is not about manners."""
    words = str(error).lower()
    chat = manner.endpoint is Endpoint.CHAT
    if may_change and chat and (error.status in _NOT_THERE or "chat template" in words or "chat_template" in words):
        return replace(manner, endpoint=Endpoint.COMPLETIONS)
    if error.status not in _NO_LIKING or error.may_be_nan:
        return None
    if chat and manner.system_role and "system" in words:
        return replace(manner, system_role=False)
    if manner.extras:
        return replace(manner, extras=False)
    if manner.logprobs:
        return replace(manner, logprobs=False)
    if chat and manner.system_role:
        return replace(manner, system_role=False)
    return None
