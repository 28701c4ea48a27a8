"""Prompts begin with a mark that no cache knows, and grow by a token a word."""

from __future__ import annotations

import random

from gptq_diff.server_probe.questions import Mark, Question, new_mark
from tests.server_probe.toy_server import Toy

MARK = Mark(("air", "war", "law", "car", "day", "man"))


def test_marks_differ() -> None:
    """A thousand of them, and the salt with them."""
    source = random.Random(0)
    marks = [new_mark(source) for _ in range(1000)]
    assert len(set(marks)) == 1000
    assert len({mark.salt for mark in marks}) == 1000


def test_the_mark_stands_first() -> None:
    """Before the filler and the question, whichever way is asked; alone after the template's default system prompt."""
    begin = " ".join(MARK.words)
    question = Question(MARK, filler=30, after=5)
    assert question.prompt().startswith(begin)
    assert question.messages(system_role=True)[0]["role"] == "system"
    for messages in (question.messages(system_role=True), question.messages(system_role=False)):
        assert messages[0]["content"].startswith(begin)
    (only,) = Question(MARK, default_system=True).messages(system_role=True)
    assert only["role"] == "user"
    assert only["content"].startswith(begin)


def test_a_word_more_is_a_token_more() -> None:
    """To a tokenizer that takes words, that is, through both endpoints."""
    toy = Toy()
    for content in ("prompt", "messages"):
        counts = [
            len(toy.tokens({content: q.prompt() if content == "prompt" else q.messages(system_role=True)}))
            for q in (Question(MARK, filler=n) for n in range(1, 300, 13))
        ]
        assert {b - a for a, b in zip(counts, counts[1:], strict=False)} == {13}


def test_questions_that_begin_alike() -> None:
    """The short one is the long one up to where its own question begins, so that a prefix cache can answer for it."""
    short, long = Question(MARK, 30), Question(MARK, 30, after=100, number=1)
    assert short.messages(system_role=True)[0] == long.messages(system_role=True)[0]
    shared = short.prompt().partition("\n")[0]
    assert long.prompt().startswith(shared)
    assert len(shared.split()) == 36
    assert (short.words, long.words) == (30, 130)
