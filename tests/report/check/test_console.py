"""A check in the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from gptq_diff.report.check.console import show_check
from tests.report.build import HOSTILE
from tests.report.check.build import a_report, cases


def shown(report):
    out = io.StringIO()
    show_check(Console(file=out, width=120, markup=False, emoji=False, highlight=False), report)
    return out.getvalue()


def test_every_case_and_what_is_wrong_with_it():
    """The table, then the lines, then the self-test and the counts."""
    text = shown(a_report(*cases(), not_begun=("later",)))
    for piece in ("good", "1 expectation held", "gpu", "needs an NVIDIA GPU", "later", "not begun", "bad: failed",
                  "hf-fp16, short (no [[expect]] names it, so it has to agree): status: expected agree",
                  "self-test: the planted fault was found", "1 held, 2 failed, 1 skipped, 1 error"):  # fmt: skip
        assert piece in text


def test_a_blind_guard():
    """In one line."""
    assert "self-test FAILED: this guard does not see (fault-bias, seed 7)" in shown(a_report(sees=False))


def test_hostile_text_does_nothing():
    """No escape reaches the terminal."""
    text = shown(a_report(text=HOSTILE))
    assert "\x1b" not in text
    assert "\u202e" not in text
