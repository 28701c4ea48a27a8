"""Files are written whole or not at all, whatever fails meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptq_diff.whole_file import write_whole

TEXT = st.text(st.characters(codec="utf-8"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(TEXT))
def test_pieces_are_what_they_are_together(tmp_path: Path, pieces: list[str]) -> None:
    """UTF-8, line ends untouched, in one piece or in many."""
    write_whole(tmp_path / "many", iter(pieces))
    write_whole(tmp_path / "one", "".join(pieces), flush=True)
    write_whole(tmp_path / "bytes", "".join(pieces).encode())
    whole = "".join(pieces).encode()
    assert {(tmp_path / name).read_bytes() for name in ("many", "one", "bytes")} == {whole}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bytes", "many", "one"]


def broken() -> Iterator[str]:
    yield "half of it"
    raise KeyboardInterrupt


def test_what_stood_there_stays_where_the_pieces_end_in_an_error(tmp_path: Path) -> None:
    """Ctrl-C while a judgement is made, for one; nothing half-written is left beside it."""
    file = tmp_path / "judged.jsonl"
    write_whole(file, "as it was")
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, broken())
    assert file.read_text() == "as it was"
    assert [p.name for p in tmp_path.iterdir()] == ["judged.jsonl"]


def test_what_stood_there_stays_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the caller's to tell."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "report.json"
    write_whole(file, "as it was")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new", flush=True)
    assert file.read_text() == "as it was"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_text_that_utf_8_cannot_hold(tmp_path: Path) -> None:
    """Half a surrogate pair, as a broken tokenizer gives: an error, and no file."""
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "text", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    """A mistyped -o is an error, and no folder comes of it."""
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "a" / "b", "x")
    assert list(tmp_path.iterdir()) == []
    write_whole(tmp_path / "a" / "b", "x", parents=True)
    assert (tmp_path / "a" / "b").read_text() == "x"
