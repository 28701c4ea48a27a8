"""What is packed into the page: the plotting library, compressed, and the numbers it draws."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parent / "vendor"
SCRIPTS = ("d3.min.js", "plot.umd.min.js")
"""Observable Plot after D3, which it needs; vendor/README.md says whence they come."""


@dataclass(frozen=True)
class Library:
    """A script as it travels in the page, and the name by which the page's policy lets it run."""

    packed: str
    hash: str


@cache
def plotting_library() -> Library:
    """Both scripts as one, their licences before them as these ask for; compressed once a process."""
    licences = (VENDOR / "LICENSES.txt").read_text(encoding="utf-8")
    script = "\n".join((f"/*!\n{licences}*/", *((VENDOR / name).read_text(encoding="utf-8") for name in SCRIPTS)))
    return Library(packed(script.encode()), source_hash(script.encode()))


def packed(data: bytes) -> str:
    """Gzip in base64, the same for the same bytes; the page inflates it with DecompressionStream."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """JSON packed likewise; ValueError for a number that JSON cannot hold."""
    return packed(json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii"))


def source_hash(script: bytes) -> str:
    """A script's name in a Content-Security-Policy: only what has this hash may run."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script).digest()).decode("ascii") + "'"
