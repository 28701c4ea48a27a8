"""One question that was asked, and what its answer shows."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gptq_diff.server_probe.answers import Answer
from gptq_diff.server_probe.collapse import State, Verdict


class Kind(str, enum.Enum):
    """Why it was asked.

    For its length, on the list or chosen to find the boundary; for the default system prompt; to fill the prefix
    cache; to meet there the beginning of a long prompt, or what a failed short one left.
    """

    LENGTH = "length"
    DEFAULT_SYSTEM = "default-system"
    BOUNDARY = "boundary"
    PRIMER = "primer"
    CACHED = "cached"
    SPOILT = "spoilt"


FRESH = frozenset((Kind.LENGTH, Kind.DEFAULT_SYSTEM, Kind.BOUNDARY))
"""New to the prefix cache, so that the kernel itself answers for all of the prompt's rows."""


@dataclass(frozen=True)
class Witness:
    """One question and its answer.

    kind: why it was asked. words: of filler in it. verdict: what it shows. answer: None where none came.
    without_logprobs: it failed when log probabilities were asked for, and was asked again without.
    went_on: the model ended at once, and was asked again past that end. seconds: until the answer.
    """

    kind: Kind
    words: int
    verdict: Verdict
    answer: Answer | None
    without_logprobs: bool = False
    went_on: bool = False
    seconds: float = 0.0

    @property
    def state(self) -> State:
        """Short for the verdict's."""
        return self.verdict.state

    @property
    def tokens(self) -> int | None:
        """Of the prompt, as the server counts."""
        return None if self.answer is None else self.answer.prompt_tokens

    @property
    def gives_logprobs(self) -> bool:
        """Whether at least one log probability came."""
        return self.answer is not None and any(value is not None for value in self.answer.logprobs or ())

    @property
    def hides_logprobs(self) -> bool:
        """Whether they failed, or came as null or as vLLM's stand-in for none at every step."""
        values = () if self.answer is None else self.answer.logprobs or ()
        return self.without_logprobs or (bool(values) and all(value is None for value in values))


def second_look(witnesses: list[Witness]) -> list[Witness]:
    """Judge those that could not be judged alone by what the server does elsewhere.

    vLLM cannot put NaN into JSON and answers 500 or 400 when asked for log probabilities that are NaN, other servers
    write null. By itself that shows nothing; beside answers of the same server with log probabilities, and with no text
    to be seen, it is a collapse into tokens that are not shown.
    """
    if not any(each.gives_logprobs for each in witnesses):
        return witnesses
    return [_looked_at(each) for each in witnesses]


def _looked_at(each: Witness) -> Witness:
    answer = each.answer
    if answer is None or each.state is not State.UNJUDGED or not each.hides_logprobs or answer.text.strip():
        return each
    if (answer.length or 0) < 1:
        return each
    how = "fails when asked for log probabilities" if each.without_logprobs else "has null for log probabilities"
    verdict = Verdict(
        State.COLLAPSED, f"{answer.length} tokens without a text, and {how}, which other answers of this server have"
    )
    return Witness(each.kind, each.words, verdict, answer, each.without_logprobs, each.went_on, each.seconds)
