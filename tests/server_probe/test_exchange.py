"""Whatever a server does, an exchange ends in time, with an answer or a sentence that says what came instead."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from gptq_diff.errors import UsageError
from gptq_diff.server_probe.api_key import ApiKey
from gptq_diff.server_probe.exchange import MOST_BYTES, Exchange, NoReply, Reply, TooSlow
from tests.server_probe.toy_server import Handler, Toy, free_port, serving

PATH = "/v1/completions"
QUESTION = b'{"prompt": "a", "max_tokens": 4}'


@contextmanager
def raw_server(*pieces: bytes, pause: float = 0.0) -> Iterator[str]:
    """Sends these bytes to whoever comes, after what it was asked, whatever that was; then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    try:
                        for piece in pieces:
                            connection.sendall(piece)
                            time.sleep(pause)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass  # bytes that nobody has read would turn the end into a reset
                    except OSError:
                        pass  # the client has given up

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def ask(url: str, timeout: float = 5.0, key: ApiKey | None = None) -> Reply:
    return Exchange(key).send("POST", url + PATH, timeout, QUESTION)


def test_a_whole_answer() -> None:
    """Status, kind without its parameters, body, Retry-After."""

    def busy(handler: Handler, number: int) -> bool:
        handler.send(429, b"later", "Text/Plain; charset=utf-8", Retry_After="7")
        return True

    with serving(Toy(behave=busy)) as url:
        reply = ask(url)
    assert (reply.status, reply.kind, reply.body, reply.retry_after) == (429, "text/plain", b"later", "7")


def test_a_caller_that_an_event_loop_runs() -> None:
    """As in a notebook: answers come, and what takes too long is left in time there too."""

    async def asked(url: str, timeout: float) -> Reply:
        return ask(url, timeout)

    def in_loop(url: str, timeout: float) -> Reply:
        return asyncio.run(asked(url, timeout))

    with ThreadPoolExecutor(1) as elsewhere:  # in this thread a browser that other tests share may have a loop
        with serving(Toy()) as url:
            assert elsewhere.submit(in_loop, url, 5.0).result().status == 200
        with raw_server(*[b""] * 99, pause=0.2) as url, pytest.raises(TooSlow):
            elsewhere.submit(in_loop, url, 0.3).result()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [(b"",) * 999, [bytes((byte,)) for byte in HEAD * 50], (CHUNKED, *[b"1\r\n \r\n"] * 999)],
    ids=["nothing", "a byte at a time", "a stream without end"],
)
def test_a_slow_server_is_left_in_time(pieces: list[bytes]) -> None:
    """The limit holds for the whole exchange: none of these would be stopped by a limit for each read."""
    with raw_server(*pieces, pause=0.05) as url:
        started = time.monotonic()
        with pytest.raises(TooSlow, match=r"no whole answer within 0\.4 s"):
            ask(url, 0.4)
        assert time.monotonic() - started < 3


def test_a_fast_stream_without_end_is_left_by_its_size() -> None:
    """Before it fills the memory."""
    block = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with raw_server(CHUNKED, *[block] * (2 * MOST_BYTES // 65536)) as url, pytest.raises(NoReply, match="after 4 MB"):
        ask(url, 30)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((), "ended its answer early or speaks no HTTP"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "ended its answer early or speaks no HTTP"),
        ((HEAD + b"Content-Length: 100\r\n\r\n{",), "ended its answer early"),
        ((HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",), "cannot be decompressed"),
    ],
    ids=["hangs up", "another protocol", "half an answer", "false gzip"],
)
def test_broken_answers(pieces: tuple[bytes, ...], said: str) -> None:
    """Each has its sentence."""
    with raw_server(*pieces) as url, pytest.raises(NoReply, match=said):
        ask(url)


def test_nobody_there() -> None:
    """A closed port, and a name that does not exist (RFC 6761 keeps .invalid free)."""
    with pytest.raises(NoReply, match=r"nothing listens at 127\.0\.0\.1:\d+"):
        ask(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NoReply, match=r"the name nowhere\.invalid cannot be looked up"):
        ask("http://nowhere.invalid")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_tls(authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path) -> None:
    """A certificate of an authority that is not known is refused by name, and taken with --ca-file."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with serving(Toy(), tls) as url:
        with pytest.raises(NoReply, match="certificate that is not trusted here"):
            ask(url)
        assert Exchange(ca_file=tmp_path / "ca.pem").send("GET", f"{url}/v1/models", 5).status == 200


def test_https_to_a_port_without_tls() -> None:
    """The usual slip says so."""
    with serving(Toy()) as url, pytest.raises(NoReply, match="is it http://"):
        ask(url.replace("http:", "https:"))


def test_a_file_without_certificates(tmp_path: Path) -> None:
    """Bad input, exit 2."""
    for content in (b"nothing", b"", b"\xff\x00"):
        (tmp_path / "ca.pem").write_bytes(content)
        with pytest.raises(UsageError, match="holds no certificate"):
            Exchange(ca_file=tmp_path / "ca.pem")


def test_a_redirect_carries_no_key_to_another_address() -> None:
    """The other server is named and never asked."""
    other = Toy()
    with serving(other) as elsewhere:

        def redirect(handler: Handler, number: int) -> bool:
            handler.send(307, b"", Location=elsewhere + PATH)
            return True

        with serving(Toy(behave=redirect)) as url, pytest.raises(NoReply, match=re.escape(f"redirects to {elsewhere}")):
            ask(url, key=ApiKey("sk-1"))
    assert other.headers == []


def test_a_redirect_within_the_server_is_followed() -> None:
    """As frameworks do for a slash at the end; the question goes along."""
    toy = Toy()

    def once(handler: Handler, number: int) -> bool:
        if number == 1:
            handler.send(308, b"", Location=PATH)
        return number == 1

    toy.behave = once
    with serving(toy) as url:
        assert ask(url).status == 200
    assert [body["prompt"] for body in toy.asked] == ["a", "a"]


def test_redirects_that_lead_nowhere() -> None:
    """In a circle; and one that would make a GET of the question."""
    for status, said in ((307, "more than 3 times"), (302, "drops the question")):

        def circle(handler: Handler, number: int, status: int = status) -> bool:
            handler.send(status, b"", Location=PATH)
            return True

        with serving(Toy(behave=circle)) as url, pytest.raises(NoReply, match=said):
            ask(url)


def test_a_key_that_a_server_repeats_is_hidden() -> None:
    """OpenAI's own error for a wrong key holds it."""
    shown = Exchange(ApiKey("sk-27182")).shown(b"Incorrect API key provided: sk-27182\x1b[31m")
    assert shown == "Incorrect API key provided: [key]"
