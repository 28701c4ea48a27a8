"""A toy of an OpenAI-compatible server: a word is a token, a kernel fails by rows, a prefix cache may hide it.

Its kernel is the reported one: the rows of a prompt that the prefix cache does not answer for go through it together,
and up to `collapses_up_to` of them come out as NaN, which the cache then keeps. `behave` takes the place of an answer
where a test wants another one: it gets the handler and the number of the question, and returns whether it has answered.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = 16
TEMPLATE = ["<s>", "system", "\n"], ["</s>", "<s>", "user", "\n"], ["</s>", "<s>", "assistant", "\n"]
DEFAULT_SYSTEM = "You are a toy and a helpful assistant of nobody in particular ."
FINE = ["Paris", " is", " a", " city", " of", " light", " and", " love", ",", " on", " a", " river", "."]

Behaviour = Callable[["Handler", int], bool]


@dataclass
class Toy:
    """What the toy does, and what it has seen.

    collapses_up_to: rows; the reverse with `above`. bang: the token of NaN logits. visible: whether its text is shown.
    extras: whether it knows vLLM's fields; strict: whether it refuses unknown fields. usage: whether it counts.
    logprobs: finite; nan (a bare word in the JSON), null, 500 or 400 (an error) for NaN; none: it has none at all.
    """

    collapses_up_to: int = 0
    above: bool = False
    bang: str = "!"
    visible: bool = True
    prefix_cache: bool = False
    extras: bool = True
    strict: bool = False
    usage: bool = True
    tokenize: bool = False
    chat: bool = True
    system_role: bool = True
    logprobs: str = "finite"
    models: tuple[str, ...] = ("toy",)
    below: str = "/v1"
    key: str | None = None
    behave: Behaviour | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cache: dict[tuple[str, ...], bool] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    closed: threading.Event = field(default_factory=threading.Event)

    def tokens(self, body: dict[str, Any]) -> list[str]:
        """A word or a sign is a token; a chat gets a template with a default system prompt."""
        if "prompt" in body:
            return _words(body["prompt"])
        said = {each["role"]: each["content"] for each in body["messages"]}
        head, middle, end = TEMPLATE
        return [*head, *_words(said.get("system", DEFAULT_SYSTEM)), *middle, *_words(said["user"]), *end]

    def run(self, body: dict[str, Any]) -> tuple[int, int, bool]:
        """Prompt tokens, those from the cache, and whether the logits are NaN."""
        tokens = self.tokens(body)
        salt = body.get("cache_salt", "") if self.extras else ""
        ends = [end for end in range(BLOCK, len(tokens), BLOCK) if self.prefix_cache]
        cached, bad = 0, False
        for end in ends:
            known = self.cache.get((salt, *tokens[:end]))
            if known is None:
                break
            cached, bad = end, bad or known
        rows = len(tokens) - cached
        fails = rows > self.collapses_up_to if self.above else rows <= self.collapses_up_to
        # Only a first token can overflow, as the massive activation of a real model does.
        bad = bad or (fails and cached == 0)
        for end in ends:
            self.cache.setdefault((salt, *tokens[:end]), bad)
        return len(tokens), cached, bad


class Handler(BaseHTTPRequestHandler):
    """Answers for the toy of its server."""

    protocol_version = "HTTP/1.1"

    @property
    def toy(self) -> Toy:
        return self.server.toy  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        if self._locked():
            return
        if self.path == f"{self.toy.below}/models":
            self.send(200, {"object": "list", "data": [{"id": name} for name in self.toy.models]})
        elif self.path == "/version" and self.toy.extras:
            self.send(200, {"version": "0.0.toy"})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        toy = self.toy
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._locked():
            return
        if self.path == "/tokenize" and toy.tokenize:
            self.send(200, {"count": len(toy.tokens(body)), "max_model_len": 4096})
            return
        chat = self.path == f"{toy.below}/chat/completions"
        if not (chat and toy.chat) and self.path != f"{toy.below}/completions":
            self.send(404, {"detail": "Not Found"})
            return
        toy.asked.append(body)
        toy.at_once += 1
        toy.most_at_once = max(toy.most_at_once, toy.at_once)
        try:
            if toy.behave is None or not toy.behave(self, len(toy.asked)):
                self._answer(body, chat=chat)
        finally:
            toy.at_once -= 1

    def _answer(self, body: dict[str, Any], *, chat: bool) -> None:
        toy = self.toy
        unknown = {"cache_salt", "return_token_ids", "skip_special_tokens", "ignore_eos"} & body.keys()
        if toy.strict and unknown:
            self.send(400, {"error": {"message": f"Unrecognized request argument supplied: {min(unknown)}"}})
        elif toy.strict and "logprobs" in body and toy.logprobs == "none":
            self.send(422, {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]})
        elif not toy.system_role and any(each["role"] == "system" for each in body.get("messages", ())):
            self.send(400, {"error": {"message": "System role not supported"}})
        else:
            self._generate(body, chat=chat)

    def _generate(self, body: dict[str, Any], *, chat: bool) -> None:
        toy = self.toy
        count, cached, bad = toy.run(body)
        words = [toy.bang] * body["max_tokens"] if bad else FINE
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if bad else "stop"}
        shown = "".join(words) if toy.visible or not bad else ""
        choice |= {"message": {"role": "assistant", "content": shown}} if chat else {"text": shown}
        if body.get("logprobs") and toy.logprobs != "none":
            if bad and toy.logprobs == "500":
                self.send(500, b"Internal Server Error", "text/plain")
                return
            if bad and toy.logprobs == "400":  # vLLM 0.32.0's words
                said = "Out of range float values are not JSON compliant: nan"
                self.send(400, {"error": {"message": said, "type": "BadRequestError", "param": None, "code": 400}})
                return
            value = {"nan": math.nan, "null": None}.get(toy.logprobs, -0.5) if bad else -0.5
            choice["logprobs"] = (
                {"content": [{"token": word, "logprob": value, "bytes": list(word.encode())} for word in words]}
                if chat
                else {"tokens": words, "token_logprobs": [value] * len(words)}
            )
        if toy.extras and body.get("return_token_ids"):
            choice["token_ids"] = [0] * len(words) if bad else list(range(100, 100 + len(words)))
        usage = {"prompt_tokens": count, "completion_tokens": len(words)}
        if toy.prefix_cache and toy.extras:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
        self.send(200, {"choices": [choice], **({"usage": usage} if toy.usage else {})})

    def _locked(self) -> bool:
        self.toy.headers.append(dict(self.headers))
        key = self.toy.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.send(401, {"error": {"message": f"Incorrect API key provided: {self.headers.get('Authorization')}"}})
        return True

    def send(self, status: int, body: object, kind: str = "application/json", **more: str) -> None:
        """A whole answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    toy: Toy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is what some tests are about."""


@contextmanager
def serving(toy: Toy, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The toy on a port of its own; gives its address without /v1."""
    server = _Server(("127.0.0.1", 0), Handler)
    server.toy = toy
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    toy.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    try:
        yield toy.url
    finally:
        toy.closed.set()  # whoever hangs in `behave` may go
        server.shutdown()
        server.server_close()


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
