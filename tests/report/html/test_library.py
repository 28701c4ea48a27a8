"""The plotting library: the very files that vendor/README.md names, with the licences that they ask to be kept."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re

import pytest

from gptq_diff.report.html.library import SCRIPTS, VENDOR, packed, packed_json, plotting_library, source_hash


def named() -> dict[str, tuple[str, str]]:
    """File -> (release, sha256), as the table says."""
    text = (VENDOR / "README.md").read_text()
    rows = re.findall(r"\| `([\w.]+)` \| \[[^]]+\]\([^)]+\) ([\d.]+),[^|]*\|[^|]*\| `([0-9a-f]{64})` \|", text)
    return {file: (release, digest) for file, release, digest in rows}


def test_the_files_are_those_of_the_table() -> None:
    """Nobody has changed them here, and the code names the release that the table names."""
    assert set(named()) == set(SCRIPTS)
    for file, (release, digest) in named().items():
        content = (VENDOR / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert f"v{release} Copyright".encode() in content[:80]


def test_the_licences_travel_with_the_code() -> None:
    """Their terms ask for it: notices of both libraries and of what lies within them, before the code."""
    script = gzip.decompress(base64.b64decode(plotting_library().packed)).decode()
    notices, code = script.split("*/", 1)
    for holder in ("Mike Bostock", "Observable, Inc.", "Mikola Lysenko", "Robert Penner", "Cynthia Brewer", "Mapbox"):
        assert holder in notices
    for terms in ("this permission notice appear in all copies", "Redistributions in binary form", "The MIT License"):
        assert terms in notices
    for release, _ in named().values():
        assert f" {release}" in notices
    assert code.lstrip().startswith("// https://d3js.org")


def test_it_is_named_by_its_hash_and_the_same_each_time() -> None:
    script = gzip.decompress(base64.b64decode(plotting_library().packed))
    assert plotting_library().hash == source_hash(script)
    plotting_library.cache_clear()
    again = plotting_library()
    assert gzip.decompress(base64.b64decode(again.packed)) == script
    assert packed(script) == again.packed


def test_it_calls_nothing_by_itself() -> None:
    """A page that is opened offline, and a zip that is a few hundred kB."""
    script = gzip.decompress(base64.b64decode(plotting_library().packed)).decode()
    assert "</script" not in script
    assert "sourceMappingURL" not in script
    assert len(plotting_library().packed) < 240_000


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    """They would end the page's script."""
    with pytest.raises(ValueError, match="JSON"):
        packed_json({"x": float("nan")})
