"""A check's Markdown: says the outcome first, shows every case, and lets no text become markup."""

from __future__ import annotations

import re

import pytest

from gptq_diff.report.check.markdown import LIMIT, check_markdown
from tests.report.build import HOSTILE
from tests.report.check.build import a_report, cases


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (a_report(cases()[0]), "every expectation held"),
        (a_report(), "something is not as expected"),
        (a_report(cases()[4]), "could not judge"),
        (a_report(cases()[3]), "could not judge"),
        (a_report(cases()[0], sees=False), "could not judge"),
    ],
)
def test_the_heading_says_how_it_ended(report, says):
    """In the words of the exit code."""
    assert check_markdown(report).splitlines()[0] == f"## gptq-diff check: {says}"


def test_every_case_is_in_the_table_with_its_state():
    """Skipped ones with the reason, and those that were not begun."""
    text = check_markdown(a_report(*cases(), not_begun=("later",)))
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1].strip() for row in rows] == ["`good`", "`bad`", "`grown`", "`gpu`", "`gone`", "`later`"]
    assert "⏭️ skipped" in rows[3]
    assert "needs an NVIDIA GPU" in rows[3]
    assert "1 held, 2 failed, 1 skipped, 1 error" in text


def test_what_is_not_as_expected_is_told_below():
    """Expected X, happened Y, a line each."""
    text = check_markdown(a_report())
    assert "### `bad`" in text
    assert "status: expected agree, happened diverged" in text
    assert "local errors grew 1.4 times" in text
    assert "### `good`" not in text


def test_no_text_becomes_markup():
    """Reasons come from logs and models."""
    text = check_markdown(a_report(text=HOSTILE + "<img src=x> **bold** [a](b) @team #1"))
    for piece in (r"(?<!\\)<img", r"(?<!\\)\*bold", r"(?<!\\)\[a", " @team", "\x1b", "\u202e"):
        assert re.search(piece, text) is None


def test_a_page_has_an_end():
    """Thousands of lines are cut, and it says where the rest is."""
    many = tuple(cases(str(n))[1] for n in range(2000))
    text = check_markdown(a_report(*many))
    assert len(text) < LIMIT + 2000
    assert "check.json has them" in text
