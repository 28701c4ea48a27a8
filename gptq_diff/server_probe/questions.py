"""What is asked: a question whose length can be chosen, new to every prefix cache, or old to one on purpose.

A prompt is MARK FILLER QUESTION. The mark is drawn anew for each question and stands before all else that can be
chosen, so that what a prefix cache holds of earlier prompts ends there. Its words are common nouns and the filler is a
tale without commas, of words that nearly every tokenizer takes as one token each. It is a tale because a small model
that is given a mere list of words may go on with it, over and over.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from gptq_diff.server_probe.answers import Endpoint

_WORDS = (  # noqa: SIM905  a list of them would take a screen
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change reason "
    "research girl moment air teacher force education"
).split()

_TALE = (  # noqa: SIM905
    "and there was an old man who lived near the sea with his small dog and every morning he went down to the water "
    "and looked at the boats that came back from the night and he talked with the people who worked there and they "
    "told him what they had seen out in the dark and he told them what he had read in his books and then he walked "
    "home through the town and bought some bread and a little milk and he sat down in front of his house and waited "
    "for the children who came from school and wanted to hear a story about the time when he was young and had seen "
    "the whole world with nothing but a good friend and a strong heart and when the sun went down they all ran home "
    "and the old man closed the door and made a fire and thought about the day that was over and the one that would "
    "come after it"
).split()

QUESTIONS = (
    "Tell me about Paris in three sentences.",
    "Explain how rain forms in a few sentences.",
    "Describe a typical day of a teacher.",
)
"""Open ones: an answer of a word or two would be too short to judge."""

MARK_WORDS = 6
"""Of a hundred words each: 10^12 marks."""


@dataclass(frozen=True)
class Mark:
    """The beginning of a prompt that nobody used before; `salt` keeps apart what vLLM's prefix cache holds."""

    words: tuple[str, ...]

    @property
    def salt(self) -> str:
        """For vLLM's `cache_salt`."""
        return "-".join(self.words)


def new_mark(source: random.Random) -> Mark:
    """Another one each time, as far as chance goes."""
    return Mark(tuple(source.choice(_WORDS) for _ in range(MARK_WORDS)))


@dataclass(frozen=True)
class Question:
    """One prompt.

    mark: its beginning. filler: how many words follow it. after: filler words between that and the question, in a
    message of their own where there are messages. number: which of QUESTIONS. default_system: no system message of
    ours, so that the chat template puts in the model's own.
    """

    mark: Mark
    filler: int = 0
    after: int = 0
    number: int = 0
    default_system: bool = False

    @property
    def words(self) -> int:
        """Filler words in all."""
        return self.filler + self.after

    def messages(self, *, system_role: bool) -> list[dict[str, str]]:
        """For a chat."""
        first = _sentence((*self.mark.words, *_filler(self.filler, 0)))
        rest = " ".join(part for part in (_sentence(_filler(self.after, self.filler)), self._asked) if part)
        if self.default_system or not system_role:
            return [{"role": "user", "content": f"{first} {rest}"}]
        return [{"role": "system", "content": first}, {"role": "user", "content": rest}]

    def prompt(self) -> str:
        """For a completion."""
        first = _sentence((*self.mark.words, *_filler(self.filler, 0)))
        after = _sentence(_filler(self.after, self.filler))
        return f"{first}{after and ' ' + after}\nQuestion: {self._asked}\nAnswer:"

    def content(self, endpoint: Endpoint, *, system_role: bool) -> dict[str, Any]:
        """Its part of a request."""
        if endpoint is Endpoint.CHAT:
            return {"messages": self.messages(system_role=system_role)}
        return {"prompt": self.prompt()}

    @property
    def _asked(self) -> str:
        return QUESTIONS[self.number % len(QUESTIONS)]


def _filler(count: int, start: int) -> tuple[str, ...]:
    return tuple(_TALE[place % len(_TALE)] for place in range(start, start + count))


def _sentence(words: tuple[str, ...]) -> str:
    return " ".join(words) + "." if words else ""
