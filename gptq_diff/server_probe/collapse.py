"""Whether one answer is a collapse, as far as text, ids and log probabilities show it.

The rule is the one of `run` (docs/judging.md): all logits of a step not finite, or at least four generated tokens, all
of them one and the same. Which token that is says nothing: Qwen writes `!`, another model an invisible one.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from gptq_diff.server_probe.answers import Answer
from gptq_diff.text import one_line

LEAST = 4
"""Generated tokens from which on all of one kind are a collapse."""

_UNREADABLE = frozenset(("", "\N{REPLACEMENT CHARACTER}"))


class State(str, enum.Enum):
    """What one answer is."""

    COLLAPSED = "collapsed"
    HEALTHY = "healthy"
    UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Verdict:
    """What an answer is, and the sentence's worth that shows it."""

    state: State
    evidence: str


def judge(answer: Answer) -> Verdict:
    """The state of one answer by itself."""
    nans = [step for step, value in enumerate(answer.logprobs or ()) if value is not None and math.isnan(value)]
    if nans:
        return Verdict(State.COLLAPSED, f"the log probability of token {nans[0] + 1} is NaN")
    for judged in (_by_ids(answer), _by_tokens(answer), _by_text(answer)):
        if judged is not None:
            return judged
    return Verdict(State.UNJUDGED, _too_little(answer))


def _by_ids(answer: Answer) -> Verdict | None:
    if answer.ids is None:
        return None
    return _one_kind(answer.ids, f"id {answer.ids[0]} ({shown(answer.text)})")


def _by_tokens(answer: Answer) -> Verdict | None:
    if answer.tokens is None or _UNREADABLE & set(answer.tokens):
        return None
    return _one_kind(answer.tokens, shown(answer.tokens[0]))


def _one_kind(tokens: tuple[int, ...] | tuple[str, ...], name: str) -> Verdict | None:
    kinds = len(set(tokens))
    if kinds > 1:
        return Verdict(State.HEALTHY, f"{kinds} different tokens among {len(tokens)}")
    return Verdict(State.COLLAPSED, f"{len(tokens)} tokens, all of them {name}") if len(tokens) >= LEAST else None


def _by_text(answer: Answer) -> Verdict | None:
    """From the text alone: as many repetitions of one piece as there are tokens, or of one character."""
    text, count = answer.text, answer.completion_tokens
    if not text:
        return None
    if count is not None and count >= LEAST:
        size, rest = divmod(len(text), count)
        if size and not rest and text == text[:size] * count:
            return Verdict(State.COLLAPSED, f"{count} tokens, and the text is {count} times {shown(text[:size])}")
    if len(set(text)) == 1:
        alone = Verdict(State.COLLAPSED, f"the text is {len(text)} times {shown(text[0])}")
        return alone if len(text) >= LEAST and (count is None or count >= LEAST) else None
    readable = set(text) - _UNREADABLE
    return Verdict(State.HEALTHY, f"{len(set(text))} different characters") if len(readable) > 1 else None


def _too_little(answer: Answer) -> str:
    count = answer.length
    if not answer.text.strip():
        return "an empty text" if count is None else f"{count} tokens and no text"
    return f"only {shown(answer.text)}, too little to tell"


def shown(text: str) -> str:
    """The beginning of it in quotes, blanks and invisible tokens as such."""
    line = one_line(text, 24)
    return f'"{line}"' if line else ("blanks" if text else "no text")
