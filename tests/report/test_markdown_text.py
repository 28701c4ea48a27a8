"""Text of others in Markdown: read by a Markdown parser, it is the same text and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from gptq_diff.report.markdown_text import cell, code, details, prose, table, within
from gptq_diff.text import one_line
from tests.report.build import HOSTILE

HOSTILE_TEXTS = (
    HOSTILE, "@everyone and @org/team", "me@example.org", "https://evil.example/a", "www.evil.example", "#1 or GH-2",
    "[a](http://evil.example)", "![a](http://evil.example/i.png)", "<img src=x onerror=alert(1)>", "<!-- a -->",
    "```", "`````` ~~~", "a ` b `` c", "`start", "end`", "</details>", "| a | b |", "# head", "- item", "1. item", "1)",
    "***", "---", "===", "> quote", "**bold** __bold__ _i_ ~~s~~", "&lt;b&gt; &#64;you", "\\", "a\\", "$x^2$", "+ a",
    "[^1]: note", "[ref]: http://evil.example", "::: x", "a|b", " ", "", "javascript:alert(1)", "<https://evil.example>",
)  # fmt: skip
PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "text_special", "code_inline", "softbreak"}
MENTION = re.compile(r"@\w|#\w|://|\bwww\.|GH-\d", re.IGNORECASE)


def tokens_of(markdown: str) -> list[Token]:
    """Every token, inline ones too."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        found += [token, *(token.children or [])]
    return found


def shown(markdown: str, kind: str = "text") -> str:
    return "".join(t.content for t in tokens_of(markdown) if t.type in (kind, "text_special"))


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_prose_is_text_alone(text: str) -> None:
    """No link, image, HTML, list, heading, code, emphasis; what is shown is the text."""
    assert {t.type for t in tokens_of(prose(text))} <= PLAIN - {"code_inline"}
    assert shown(prose(text)).replace("\u200b", "") == one_line(text)


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_prose_starts_no_mention_or_address(text: str) -> None:
    """GitHub looks for them in what is rendered, so that is where they must not be."""
    assert not MENTION.search(shown(prose(text)))


@given(st.text())
def test_prose_is_text_alone_whatever_it_is(text: str) -> None:
    found = tokens_of(prose(text))
    assert {t.type for t in found} <= PLAIN - {"code_inline"}
    assert not MENTION.search(shown(prose(text)))


@given(st.text())
def test_code_is_one_span_whatever_it_is(text: str) -> None:
    """GitHub makes no mentions or links in code."""
    spans = [t for t in tokens_of(f"x {code(text)} y") if t.type not in ("paragraph_open", "paragraph_close", "inline")]
    if one_line(text):
        assert [t.type for t in spans] == ["text", "code_inline", "text"]
        assert spans[1].content.strip(" ") == one_line(text).strip(" ")
    else:
        assert shown(code(text)) == "(empty)"


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_a_cell_stays_one_cell(text: str) -> None:
    lines = table(("a", "b"), [[cell(text), "x"]])
    found = tokens_of("\n".join(lines))
    assert sum(t.type == "td_open" for t in found) == 2
    assert {t.type for t in found if t.type.startswith(("link", "image", "html"))} == set()


def test_what_is_folded_away_has_blank_lines_around_it() -> None:
    """Or GitHub would take the Markdown in it for HTML."""
    assert details("more", ["- a"]) == ["<details>", "<summary>more</summary>", "", "- a", "", "</details>", ""]
    assert details("more", []) == []


def test_what_does_not_fit_is_counted() -> None:
    assert within(["abc", "def"], 8) == ["abc", "def"]
    assert within(["abc", "def", "g"], 7) == ["abc", "", "(2 more lines: report.json has them)"]
    assert within(["abcdefgh"], 7) == ["", "(1 more line: report.json has them)"]
