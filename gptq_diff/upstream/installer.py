"""Where packages come from, as pip is set to look: `pip config list` knows its files and variables."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_INDEX = "https://pypi.org/simple/"
_PATIENCE = 60.0
_LINE = re.compile(r"(?P<section>:env:|[\w-]+)\.(?P<name>[\w-]+)=(?P<value>.*)")
_SECTIONS = ("global", "install", "download", ":env:")
"""Those that matter, what comes later wins."""


@dataclass(frozen=True)
class Installer:
    """pip's settings.

    cert: file or folder of certificates, client_cert: ours, proxy: URL; None for none. timeout: seconds.
    """

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0


def installer_here(python: Path, environment: Mapping[str, str]) -> Installer:
    """The settings of that interpreter's pip, else of the pip on PATH, else those of PIP_... variables alone."""
    commands = [[str(python), "-m", "pip"]]
    found = shutil.which("pip", path=environment.get("PATH"))
    commands += [[found]] if found else []
    for command in commands:
        try:
            done = subprocess.run(  # noqa: S603  pip
                [*command, "config", "list"], capture_output=True, text=True, timeout=_PATIENCE, check=False,
                env=dict(environment), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return settings(done.stdout)
    variables = {name: value for name, value in environment.items() if name.startswith("PIP_") and value}
    lines = [f":env:.{n.removeprefix('PIP_').lower().replace('_', '-')}={v!r}" for n, v in variables.items()]
    return settings("\n".join(lines))


def settings(listed: str) -> Installer:
    """What `pip config list` printed, read."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match and match["section"] in found:
            found[match["section"]][match["name"]] = _value(match["value"])
    said: dict[str, str] = {}
    for section in _SECTIONS:
        said |= found[section]
    no_index = said.get("no-index", "").strip().lower() in ("1", "true", "yes", "on", "y", "t")
    indexes = [*said.get("index-url", DEFAULT_INDEX).split(), *said.get("extra-index-url", "").split()]
    try:
        timeout = float(said.get("timeout") or said.get("default-timeout") or 15)
    except ValueError:
        timeout = 15.0
    return Installer(
        index_urls=() if no_index else tuple(indexes), find_links=tuple(said.get("find-links", "").split()),
        trusted_hosts=tuple(said.get("trusted-host", "").split()), cert=said.get("cert") or None,
        client_cert=said.get("client-cert") or None, proxy=said.get("proxy") or None, timeout=timeout,
    )  # fmt: skip


def _value(text: str) -> str:
    """What pip shows as a Python string."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
