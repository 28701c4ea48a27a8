"""What is packed into the page: the plotting library from its own package, compressed, and the numbers it draws."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Library:
    """A script as it travels in the page, and the name by which the page's policy lets it run."""

    packed: str
    hash: str


@cache
def plotly() -> Library:
    """The plotting library; compressing it takes most of a second, so once a process.

    Nothing where its package is not installed: the page then says so, and a run does not fail for want of pictures.
    """
    script = _plotly_js()
    return Library(packed(script) if script else "", source_hash(script))


def _plotly_js() -> bytes:
    """plotly.js as the Python package plotly ships it; nothing without it. Importing the package would take seconds."""
    spec = importlib.util.find_spec("plotly")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        path = Path(place) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.read_bytes()
    return b""


def packed(data: bytes) -> str:
    """Gzip in base64, the same for the same bytes; the page inflates it with DecompressionStream."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """JSON packed likewise; ValueError for a number that JSON cannot hold."""
    return packed(json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii"))


def source_hash(script: bytes) -> str:
    """A script's name in a Content-Security-Policy: only what has this hash may run."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script).digest()).decode("ascii") + "'"
