"""Where a server is asked: the address as it was given, and the two places below it where the API may be."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from gptq_diff.errors import UsageError
from gptq_diff.text import one_line

EXAMPLE = "Give it as http://HOST:PORT, or as http://HOST:PORT/v1."


@dataclass(frozen=True)
class Address:
    """The parts of a base URL that is fit to be asked.

    origin: scheme, host and port; what else the server offers (/version, /tokenize) lies directly below it or `path`.
    path: what was given after it, without `/v1` and without a slash at its end; mostly empty.
    """

    origin: str
    path: str

    @property
    def api_places(self) -> tuple[str, ...]:
        """Where /models and /completions may be, the usual one first."""
        return (f"{self.origin}{self.path}/v1", f"{self.origin}{self.path}")

    @property
    def root(self) -> str:
        """Where what is not of OpenAI's API may be."""
        return f"{self.origin}{self.path}"


def read_address(text: str) -> Address:
    """The address in a --base-url; UsageError says what is wrong with it, without repeating a password in it."""
    shown = one_line(text, 200)
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--base-url cannot be read as an address: {error}", EXAMPLE) from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "--base-url holds a user name or a password",
            "Give a key by --api-key-file or --api-key-env, where it is never printed.",
        )
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--base-url {shown} is no http or https address", EXAMPLE)
    if parts.query or parts.fragment:
        raise UsageError("--base-url goes on after a ? or #, where nothing can be added to it", EXAMPLE)
    if any(letter.isspace() or ord(letter) < 32 for letter in text.strip()):
        raise UsageError(f"--base-url {shown} holds a blank or a control character", EXAMPLE)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    origin = urlunsplit((parts.scheme.lower(), host if port is None else f"{host}:{port}", "", "", ""))
    return Address(origin, parts.path.rstrip("/").removesuffix("/v1").rstrip("/"))
