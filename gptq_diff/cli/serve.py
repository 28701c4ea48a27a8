"""One page on localhost, and nothing else: no other file, no other machine, no other site's script."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOCAL = {"127.0.0.1", "localhost", "[::1]"}


def server_of(page: Path, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers `/` with the page as it is at that time; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in LOCAL:  # a name that somebody made resolve to this machine, from a page elsewhere
                self.send_error(403)
            elif self.path.partition("?")[0] != "/":
                self.send_error(404)
            else:
                self._send(page.read_bytes())

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name of the base class
            """Nothing: requests are nobody's news."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
