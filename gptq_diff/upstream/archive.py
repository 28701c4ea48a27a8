"""Reading a source distribution without trusting it: nothing is unpacked, files become bytes in memory."""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Callable

from gptq_diff.errors import UsageError
from gptq_diff.releases import Release

FILE_BYTES = 4_000_000
"""Largest file that is read."""
TOTAL_BYTES = 64_000_000
"""All files together: those of vLLM 0.33.0 that are looked at have 5.9 MB, the largest 153 KB."""


def read_members(archive: Path, release: Release, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Path below the archive's one folder -> content, of the regular files that are wanted.

    UsageError for what is no tar archive or one of another release, for a wanted name that is a link or leads
    elsewhere, and for more than the limits above.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, mode="r|*") as tar:
            for member in tar:
                path = _below(archive, release, member.name)
                if path is None or not wanted(path):
                    continue
                if not member.isfile():
                    if member.isdir():
                        continue
                    raise UsageError(f"{archive}: {member.name} is a link, not a file", "take the release's own sdist")
                if member.size > FILE_BYTES or sum(map(len, found.values())) + member.size > TOTAL_BYTES:
                    raise UsageError(f"{archive}: {member.name} is too large to be a kernel source", "is it the sdist?")
                stream = tar.extractfile(member)
                found[path] = b"" if stream is None else stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise UsageError(f"{archive} cannot be read as a source distribution: {e}", "give the release's .tar.gz") from e
    return found


def _below(archive: Path, release: Release, name: str) -> str | None:
    """The path below the top folder; None for the folder itself and for names that lead out of it."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        return None
    package, _, version = parts[0].rpartition("-")
    if (re.sub("[-_.]+", "-", package).lower(), version) != (release.package, release.version):
        raise UsageError(
            f"{archive} is not the source distribution of {release}: it holds {parts[0]}", f"give that of {release}"
        )
    return "/".join(parts[1:]) or None
