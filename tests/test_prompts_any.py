"""Prompt files of any content: what was written is what is read, and whatever is wrong is one clear sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptq_diff.errors import PromptError
from gptq_diff.prompts.entries import PromptEntry
from gptq_diff.prompts.read import read_prompt_file

ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)
ENTRY = TEXT | st.builds(lambda text: {"prompt": text}, TEXT) | st.builds(lambda ids: {"token_ids": ids}, IDS)
ENTRIES = st.lists(ENTRY, min_size=1, max_size=6)
BLANKS = st.text(" \t\r\n", max_size=3)


def told(entry: PromptEntry) -> object:
    """What an entry asks, in the shortest form that a file could have."""
    return list(entry.token_ids) if entry.token_ids is not None else entry.text


def meant(entry: object) -> object:
    return entry if isinstance(entry, str) else next(iter(entry.values()))  # type: ignore[attr-defined]


@ANY
@given(entries=ENTRIES, ascii_only=st.booleans(), mark=st.booleans(), blank=BLANKS)
def test_both_forms_of_json_are_read_as_they_were_written(
    tmp_path: Path, entries: list[object], ascii_only: bool, mark: bool, blank: str
) -> None:
    """Escaped or not, with a byte-order mark or not, blanks around: the same entries in order, named p1, p2, ..."""
    lines = "\n".join(json.dumps(entry, ensure_ascii=ascii_only) for entry in entries)
    whole = blank + json.dumps(entries, ensure_ascii=ascii_only, indent=1 if blank else None) + blank
    for name, text in (("a.jsonl", lines), ("a.json", whole)):
        (tmp_path / name).write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode("utf-8"))
        found = read_prompt_file(str(tmp_path / name), io.BytesIO())
        assert [told(entry) for entry in found] == [meant(entry) for entry in entries]
        assert [entry.id for entry in found] == [f"p{n}" for n in range(1, len(entries) + 1)]


@ANY
@given(text=TEXT)
def test_a_text_file_is_one_prompt_as_it_is(tmp_path: Path, text: str) -> None:
    """Line ends, blanks and whatever looks like JSON belong to it; only a byte-order mark does not."""
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8"))
    (entry,) = read_prompt_file(str(tmp_path / "a.txt"), io.BytesIO())
    assert entry.text == text.removeprefix("\ufeff")


@ANY
@given(data=st.binary(max_size=60), name=st.sampled_from(["a.txt", "a.json", "a.jsonl", "-"]))
@example(data=b"[" * 100_000, name="a.json")
@example(data=b'{"prompt": "a", "prompt": "b"}', name="a.jsonl")
@example(data=b"\xff\xfea\x00", name="a.txt")
def test_any_bytes_are_prompts_or_a_sentence(tmp_path: Path, data: bytes, name: str) -> None:
    """No content of a file ends in anything but entries or an error that names the file and what to do."""
    path = name if name == "-" else str(tmp_path / name)
    if name != "-":
        Path(path).write_bytes(data)
    try:
        found = read_prompt_file(path, io.BytesIO(data))
    except PromptError as error:
        assert ("standard input" if name == "-" else path) in str(error)
        assert error.hint
    else:
        assert found
        assert all(entry.id for entry in found)


@ANY
@given(entries=ENTRIES, at=st.integers(0, 10**6), what=st.sampled_from(list('{}[],:"x\\')))
def test_one_wrong_character_never_loses_an_entry_in_silence(
    tmp_path: Path, entries: list[object], at: int, what: str
) -> None:
    """A character put anywhere into a list: an error, or as many entries as there were."""
    text = json.dumps(entries)
    at %= len(text) + 1
    (tmp_path / "a.json").write_text(text[:at] + what + text[at:], encoding="utf-8")
    try:
        found = read_prompt_file(str(tmp_path / "a.json"), io.BytesIO())
    except PromptError as error:
        assert "line 1" in str(error)
    else:
        assert len(found) >= len(entries)
