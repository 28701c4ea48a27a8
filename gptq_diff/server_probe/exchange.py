"""One request and its answer, bounded in time and in size whatever the server does.

A limit for each read does not bound an exchange: a server that sends a byte a second keeps it for ever. So the whole
of it, from the look-up of the name to the last byte, runs under one limit and is cancelled when that is over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from gptq_diff import __version__
from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.server_probe.api_key import ApiKey
from gptq_diff.text import one_line

MOST_BYTES = 4_000_000
"""Of an answer; sixteen tokens with their log probabilities are some 10 kB."""

MOST_REDIRECTS = 3

T = TypeVar("T")


class NoReply(CannotJudge):
    """The server gave no whole HTTP answer; `str(error)` says why."""


class TooSlow(NoReply):
    """Its time was over."""


@dataclass(frozen=True)
class Reply:
    """A whole HTTP answer.

    status: its code. kind: its Content-Type without parameters, in small letters. body: decompressed.
    retry_after: its Retry-After as it came, None for none. seconds: from the first byte asked to the last answered.
    """

    status: int
    kind: str
    body: bytes
    retry_after: str | None
    seconds: float


class Exchange:
    """Sends requests, each on a connection of its own: a server may close idle ones, and does not warn."""

    def __init__(self, key: ApiKey | None = None, ca_file: Path | None = None) -> None:
        self._key = key
        self._headers = {"User-Agent": f"gptq-diff/{__version__}", **(key.header() if key else {})}
        self._tls = httpx2.create_ssl_context() if ca_file is None else _trusting(ca_file)

    def send(self, method: str, url: str, timeout: float, body: bytes | None = None) -> Reply:
        """Ask, and wait for the whole answer, at most `timeout` seconds. NoReply says what came instead.

        A redirect is followed within scheme, host and port; another address never gets the key, it is named instead.
        """
        started = time.monotonic()
        try:
            status, headers, content = _to_the_end(asyncio.wait_for(self._send(method, url, body), timeout))
        except (TimeoutError, asyncio.TimeoutError, httpx2.TimeoutException):
            raise TooSlow(f"no whole answer within {timeout:.3g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise NoReply(self._hidden(why(error, url))) from None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return Reply(status, kind, content, headers.get("retry-after"), time.monotonic() - started)

    def shown(self, body: bytes, limit: int = 160) -> str:
        """The beginning of what a server sent, without the key, on one line."""
        return one_line(self._hidden(body[:20_000].decode("utf-8", "replace")), limit)

    def hidden(self, text: str) -> str:
        """A server's text without the key."""
        return self._hidden(text)

    def _hidden(self, text: str) -> str:
        return text if self._key is None else self._key.hidden_in(text)

    async def _send(self, method: str, url: str, body: bytes | None) -> tuple[int, httpx2.Headers, bytes]:
        headers = {**self._headers, **({} if body is None else {"Content-Type": "application/json"})}
        async with httpx2.AsyncClient(verify=self._tls, headers=headers, timeout=None, http2=False) as client:
            for _ in range(MOST_REDIRECTS + 1):
                async with client.stream(method, url, content=body) as response:
                    if not response.has_redirect_location:
                        return response.status_code, response.headers, await _whole(response)
                    url = _within(url, response)
        raise NoReply(f"redirects more than {MOST_REDIRECTS} times")


def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to, also for a caller that an event loop of its own runs, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _whole(response: httpx2.Response) -> bytes:
    found = bytearray()
    async for piece in response.aiter_bytes():
        found += piece
        if len(found) > MOST_BYTES:
            raise NoReply(f"its answer goes on after {MOST_BYTES // 1_000_000} MB")
    return bytes(found)


def _within(url: str, response: httpx2.Response) -> str:
    """Where a redirect leads, if that is the same server; NoReply names the other."""
    target = httpx2.URL(url).join(response.headers["location"])
    here, there = urlsplit(url), urlsplit(str(target))
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        raise NoReply(
            f"redirects to {there.scheme}://{there.hostname}{f':{there.port}' if there.port else ''}, where no key is "
            "sent unasked", "Give that address as --base-url if it is the right one.",
        )  # fmt: skip
    if response.status_code not in (307, 308) and response.request.method != "GET":
        raise NoReply(f"redirects (HTTP {response.status_code}) to {one_line(there.path, 80)} and drops the question")
    return str(target)


def _trusting(ca_file: Path) -> ssl.SSLContext:
    data = ca_file.read_bytes()  # an error of the file's own names it; one of ssl's does not
    try:
        if b"-----BEGIN" in data:  # nothing at all would be taken for the system's
            return ssl.create_default_context(cadata=data.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        pass
    raise UsageError(f"--ca-file {ca_file} holds no certificate", "It is to be in PEM format.")


def why(error: Exception, url: str) -> str:
    """A sentence's worth about a failed exchange, from the first cause that says more than the library does."""
    parts = urlsplit(url)
    place = parts.netloc
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{place} shows a certificate that is not trusted here ({one_line(cause.verify_message, 120)})"
        if isinstance(cause, ssl.SSLError):
            return f"{place} speaks no TLS that is understood here ({one_line(str(cause.reason), 80)}); is it http://?"
        if isinstance(cause, socket.gaierror):
            return f"the name {parts.hostname} cannot be looked up ({cause.strerror})"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing listens at {place} (connection refused)"
        if isinstance(cause, ConnectionResetError):
            return f"{place} dropped the connection"
    if isinstance(error, httpx2.ConnectError):
        return f"{place} cannot be reached ({one_line(str(error), 120) or 'no connection'})"
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy in between refuses ({one_line(str(error), 120)})"
    if isinstance(error, httpx2.RemoteProtocolError):
        return f"{place} ended its answer early or speaks no HTTP ({one_line(str(error), 120)})"
    if isinstance(error, httpx2.DecodingError):
        return f"{place} sent an answer that cannot be decompressed"
    return f"the exchange with {place} failed ({type(error).__name__}: {one_line(str(error), 120)})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the members of groups among them: anyio tries several addresses."""
    todo, seen = [error], set()
    while todo:
        each = todo.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        todo += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
        todo += list(getattr(each, "exceptions", ()))
