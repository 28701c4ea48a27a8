"""A zip that is the same bytes for the same files: fixed times, modes and order, and a manifest of what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping

from gptq_diff import __version__
from gptq_diff.bundle.layout import MANIFEST, NAMES, SCHEMA_VERSION, TOP

_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16


def packed(files: Mapping[str, bytes]) -> bytes:
    """The zip's bytes, manifest.json added; the same on every machine with the same zlib."""
    wrong = [name for name in files if not NAMES.fullmatch(name) or name == MANIFEST]
    assert not wrong, f"a bundle has no place for {wrong}"
    whole = {**files, MANIFEST: manifest(files)}
    ordered = sorted(whole, key=lambda name: (TOP.index(name) if name in TOP else len(TOP), name))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ordered:
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system, info.external_attr, info.compress_type = 3, _MODE, zipfile.ZIP_DEFLATED
            archive.writestr(info, whole[name], compresslevel=9)
    return out.getvalue()


def manifest(files: Mapping[str, bytes]) -> bytes:
    """manifest.json: sha256 and size of every other file."""
    told = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for n, d in sorted(files.items())}
    value = {"schema_version": SCHEMA_VERSION, "gptq_diff": __version__, "files": told}
    return (json.dumps(value, indent=1) + "\n").encode()
