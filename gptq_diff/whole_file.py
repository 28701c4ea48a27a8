"""Writing a file whole or not at all. Standard library only, Python 3.9 syntax: workers write this way too."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(
    path: Path, content: str | bytes | Iterable[str], *, parents: bool = False, flush: bool = False
) -> None:
    """Put the content under that name by rename; what stood there stays as it was if anything fails meanwhile.

    content: text is written in UTF-8 with its line ends as they are; pieces of text one after the other.
    parents: folders above it are made. flush: until it lies on the disk, for what must outlast a power cut.
    OSError where it cannot be written; whatever the pieces raise. Nothing is left beside it then.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    whole = False
    try:
        with part.open("wb") as file:
            for piece in (content,) if isinstance(content, (str, bytes)) else content:
                file.write(piece.encode("utf-8") if isinstance(piece, str) else piece)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        whole = True
    finally:
        if not whole:
            part.unlink(missing_ok=True)
