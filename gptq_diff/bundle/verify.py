"""Checking a bundle that comes from somebody else: nothing is unpacked to disk, run or unpickled.

Every refusal is one sentence (BadBundle, exit code 2) that says what is wrong and where.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.bundle.layout import MANIFEST, MOST_FILES, MOST_RATIO, MOST_UNPACKED, NAMES, SCHEMA_VERSION
from gptq_diff.errors import UsageError
from gptq_diff.text import one_line

NEEDED = ("ISSUE.md", "report.html", "report.json", "report.md")
_SMALL = 4096
"""Bytes below which a ratio says nothing."""
_MOST_MANIFEST = 1_000_000
_CHUNK = 1 << 20
_NOT_A_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, RuntimeError, ValueError, LookupError,
    OverflowError,
)  # fmt: skip
"""What zipfile raises for bytes that are none."""


class BadBundle(UsageError):  # noqa: N818  as its peers in gptq_diff.errors
    """The file is not a sound bundle."""


@dataclass(frozen=True)
class Verified:
    """A sound bundle: files by name with their size in bytes, manifest.json left out; version: that made it."""

    files: dict[str, int]
    version: str


def verify(path: Path) -> Verified:
    """Check names, sizes, contents against the manifest; BadBundle for anything else than a sound bundle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            told, version = _manifest(archive, entries)
            _held_against(archive, entries, told)
    except FileNotFoundError:
        raise BadBundle(f"{path} does not exist", "give a file made by `gptq-diff bundle`") from None
    except UnicodeError as e:
        raise _bad("a name in it is not text") from e
    except OSError as e:
        if e.errno not in (None, errno.EINVAL):  # a seek to nowhere; anything else is about the path
            raise
        raise _bad("it is not a sound zip (it points beyond itself)") from e
    except _NOT_A_ZIP as e:
        raise _bad(f"it is not a sound zip ({one_line(str(e), 120) or type(e).__name__})") from e
    return Verified({name: size for name, (_, size) in sorted(told.items())}, version)


def _bad(why: str) -> BadBundle:
    return BadBundle(f"not a bundle to trust: {why}", "ask for it to be made again with `gptq-diff bundle`")


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Names and sizes as the zip's directory states them, all of them looked at before anything is read."""
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise _bad(f"it holds {len(infos)} files, more than {MOST_FILES}")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename
        shown = one_line(ascii(name), 120)
        mode = info.external_attr >> 16
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise _bad(f"the name {shown} leads out of its folder")
        if stat.S_ISLNK(mode):
            raise _bad(f"{shown} is a symbolic link")
        if name.endswith("/") or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise _bad(f"{shown} is not a plain file")
        if name in found:
            raise _bad(f"{shown} is in it twice")
        if not NAMES.fullmatch(name):
            raise _bad(f"{shown} is no file of a bundle")
        if info.flag_bits & 1:
            raise _bad(f"{shown} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(f"{shown} is packed in a way that bundles do not use")
        if info.file_size > _SMALL and info.file_size > MOST_RATIO * max(info.compress_size, 1):
            raise _bad(f"{shown} would unpack to more than {MOST_RATIO} times its size")
        found[name] = info
    total = sum(info.file_size for info in infos)
    if total > MOST_UNPACKED:
        raise _bad(f"it would unpack to {total:,} bytes, more than {MOST_UNPACKED:,}")
    return found


def _manifest(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> tuple[dict[str, tuple[str, int]], str]:
    """sha256 and size by name, and the version that made the bundle."""
    if MANIFEST not in entries:
        raise _bad(f"it has no {MANIFEST}")
    if entries[MANIFEST].file_size > _MOST_MANIFEST:
        raise _bad(f"its {MANIFEST} is too large")
    try:
        raw = json.loads(archive.read(MANIFEST))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise _bad(f"its schema_version is not {SCHEMA_VERSION}: a newer gptq-diff may read it")
        told = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in raw["files"].items()}
        return told, one_line(str(raw["gptq_diff"]), 40)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise _bad(f"its {MANIFEST} is damaged") from e


def _held_against(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], told: dict[str, tuple[str, int]]
) -> None:
    there = set(entries) - {MANIFEST}
    if missing := sorted(set(told) - there):
        raise _bad(f"{one_line(ascii(missing[0]), 120)} is in its manifest and not in it")
    if unknown := sorted(there - set(told)):
        raise _bad(f"{unknown[0]} is not in its manifest")
    if lacking := [name for name in NEEDED if name not in told]:
        raise _bad(f"it has no {lacking[0]}")
    for name, (sha256, size) in told.items():
        if entries[name].file_size != size or _digest(archive, entries[name]) != sha256:
            raise _bad(f"{name} is not what its manifest says")


def _digest(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """sha256 of the file, read in pieces: what it states as its size is as much as is ever read."""
    seen, digest = 0, hashlib.sha256()
    with archive.open(info) as f:
        while chunk := f.read(_CHUNK):
            seen += len(chunk)
            if seen > info.file_size:
                raise _bad(f"{info.filename} is larger than it says")
            digest.update(chunk)
    return digest.hexdigest()
