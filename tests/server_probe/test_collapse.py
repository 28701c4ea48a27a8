"""The rule of collapse on single answers: what it acts on, and where it stays silent."""

from __future__ import annotations

import math

import pytest

from gptq_diff.server_probe.answers import Answer
from gptq_diff.server_probe.collapse import judge

BANGS = "!!!!!!!!"


@pytest.mark.parametrize(
    ("answer", "evidence"),
    [
        (Answer(BANGS, ids=(0,) * 8), '8 tokens, all of them id 0 ("!!!!!!!!")'),
        (Answer("", ids=(0,) * 4), "4 tokens, all of them id 0 (no text)"),
        (Answer("zzzz", ids=(77,) * 4), "4 tokens, all of them id 77"),
        (Answer(BANGS, tokens=("!",) * 8), '8 tokens, all of them "!"'),
        (Answer("the the the the", tokens=(" the",) * 4), '4 tokens, all of them "the"'),
        (Answer(BANGS), 'the text is 8 times "!"'),
        (Answer("####", completion_tokens=4), '4 tokens, and the text is 4 times "#"'),
        (Answer("<pad>" * 16, completion_tokens=16), '16 tokens, and the text is 16 times "<pad>"'),
        (Answer("\n" * 6), "the text is 6 times blanks"),
        (Answer("\x00" * 6, ids=(3,) * 6), "6 tokens, all of them id 3 (blanks)"),
        (Answer("Paris is", ids=(5, 6), logprobs=(-0.5, math.nan)), "the log probability of token 2 is NaN"),
    ],
)  # fmt: skip
def test_acts(answer: Answer, evidence: str) -> None:
    """Any token, any way in which it is told, invisible ones too; a NaN whatever the text is."""
    verdict = judge(answer)
    assert verdict.state.value == "collapsed"
    assert verdict.evidence.startswith(evidence)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("Paris is a city", ids=(5, 6, 7, 8)),
        Answer("!!!!!!!a", ids=(0,) * 7 + (5,)),
        Answer("Paris", tokens=("Par", "is")),
        Answer("!!!! and what not"),
        Answer("Hm", completion_tokens=2),
        Answer("abab", completion_tokens=4),
        Answer("the the the the", completion_tokens=4),
    ],
)
def test_stays_silent(answer: Answer) -> None:
    """More than one kind of token; four words with three blanks between are no four repetitions of one piece."""
    assert judge(answer).state.value == "healthy"


@pytest.mark.parametrize(
    ("answer", "evidence"),
    [
        (Answer("!!!", ids=(0,) * 3), 'only "!!!", too little to tell'),
        (Answer("!!!"), 'only "!!!"'),
        (Answer("!!!!", completion_tokens=2), 'only "!!!!"'),
        (Answer(""), "an empty text"),
        (Answer("", completion_tokens=16), "16 tokens and no text"),
        (Answer("\ufffd" * 4, tokens=("\ufffd",) * 4, completion_tokens=3), "only"),
        (Answer("", tokens=("", "", "", "")), "4 tokens and no text"),
    ],
)
def test_cannot_tell(answer: Answer, evidence: str) -> None:
    """Too few tokens, or none that can be told apart: no verdict in either direction."""
    verdict = judge(answer)
    assert verdict.state.value == "unjudged"
    assert verdict.evidence.startswith(evidence)
