"""Untrusted text cannot move the cursor, recolour, hide or reorder what a person reads."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptq_diff.text import clean, one_line


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x9b31mred", "red"),
        ("a\x1b[38;5;196mb\x1b[?25lc", "abc"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9d0;title\x9ctext", "text"),
        ("\x1bPq#0;2\x1b\\after", "after"),
        ("\x1b_payload\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("\x1b(Bcharset", "charset"),
        ("lone \x1b", "lone "),
    ],
)
def test_a_whole_escape_sequence_goes_with_its_printable_tail(dirty: str, expected: str) -> None:
    """Dropping ESC alone would leave `[31m` behind."""
    assert clean(dirty) == expected


def test_an_unfinished_sequence_does_not_swallow_the_text_behind_it() -> None:
    """Otherwise a model could hide the rest of a report with one open bracket."""
    assert clean("\x1b]0;never closed, still shown") == "0;never closed, still shown"


def test_taking_one_sequence_out_does_not_make_another() -> None:
    """Nested sequences must not assemble themselves once the inner one is gone."""
    assert "\x1b" not in clean("\x1b\x1b[31m[31mred")
    assert clean("\x1b\x1b[31m[31mred") == "[31mred"


@pytest.mark.parametrize("code", [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)])
def test_every_c0_and_c1_control_is_dropped(code: int) -> None:
    """One left is enough to ring, backspace over or clear something."""
    assert clean(f"a{chr(code)}") == "a"


@pytest.mark.parametrize(
    "code", [0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
)
def test_every_bidi_and_zero_width_control_is_dropped(code: int) -> None:
    """Overrides reorder what is read; zero-width characters make two names look alike."""
    assert clean(f"a{chr(code)}b") == "ab"


def test_every_format_character_of_unicode_is_dropped_but_those_that_show() -> None:
    """Counted against Unicode's own category Cf rather than against the list in the code."""
    kept = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Cf" and clean(c)]
    # Signs that enclose digits or belong to a script (Arabic, Syriac, Kaithi, Egyptian, shorthand, music) stay.
    assert not [f"{ord(c):X}" for c in kept if not 0x600 <= ord(c) <= 0x8E2 and ord(c) < 0x11000]


def test_invisible_tag_characters_are_dropped() -> None:
    """They carry a whole hidden ASCII message."""
    assert clean("ok" + "".join(chr(0xE0000 + ord(c)) for c in "hidden")) == "ok"


@pytest.mark.parametrize(
    "text", ["plain", "tab\tand\nnewline", "中文，标点！", "é ñ ß", "مرحبا", "👍🏽", "[bold]not markup[/bold]"]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Prompts are Chinese, Arabic, emoji; brackets are the printer's affair."""
    assert clean(text) == text


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n", "\u2028", "\u2029"])
def test_every_kind_of_newline_becomes_one(newline: str) -> None:
    """A lone carriage return would print over the line before."""
    assert clean(f"a{newline}b") == "a\nb"


def test_a_lone_surrogate_can_be_printed_afterwards() -> None:
    """File names that are not UTF-8 arrive with them, and no encoder takes them."""
    assert clean("bad \udcff name") == "bad \ufffd name"
    clean("\ud800").encode()


def test_cleaning_twice_changes_nothing() -> None:
    """Outputs may be cleaned at more than one place."""
    for text in ("\x1b[31mred", "a\u202eb", "\x1b]x", "\x1b\x1b[0m]0;t\x07", "\r\r\n"):
        assert clean(clean(text)) == clean(text)


def test_one_line_folds_blanks_and_trims() -> None:
    """A sentence for the terminal has no line breaks."""
    assert one_line("  a\n\n b\t\x1b[1mc\r\nd ") == "a b c d"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "hello world"), (11, "hello world"), (10, "hello wor…"), (7, "hello…"), (1, "…"), (0, "…")],
)
def test_one_line_cuts_at_the_limit(limit: int | None, expected: str) -> None:
    """The ellipsis counts as one of the characters."""
    assert one_line("hello world", limit) == expected


def test_hostile_input_takes_linear_time() -> None:
    """A model may answer with a million unfinished sequences."""
    for unit in ("\x1b]", "\x1b[", "\x9d", "\x1b", "\x1b]a\x1b"):
        started = time.perf_counter()
        clean(unit * 100_000)
        assert time.perf_counter() - started < 2, unit.encode()


ANY_TEXT = st.text(st.characters() | st.sampled_from("\x1b\x9b\x9d\x07[]m;31\\\u202e\u200b\r\n\t\ud800 "))


@given(ANY_TEXT)
def test_nothing_that_moves_hides_or_reorders_is_left(text: str) -> None:
    """Of any text at all: no control, no escape, no direction mark, nothing that an encoding cannot write."""
    left = clean(text)
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert not set("\u200b\u200e\u200f\u202a\u202e\u2066\ufeff") & set(left)
    left.encode("utf-8")
    assert clean(left) == left


@given(ANY_TEXT, st.integers(1, 30))
def test_one_line_is_one_line_of_that_length(text: str, limit: int) -> None:
    """However long; what fits is whole, and what does not ends in an ellipsis."""
    whole, cut = one_line(text), one_line(text, limit)
    assert whole.splitlines() in ([], [whole])
    assert len(cut) <= limit
    assert cut == whole if len(whole) <= limit else cut.endswith("…") and whole.startswith(cut[:-1])
