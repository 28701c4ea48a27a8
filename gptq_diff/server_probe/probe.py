"""One probe of a server: prompts of several lengths, the default system prompt, the boundary, the prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gptq_diff.errors import CannotJudge
from gptq_diff.server_probe.answers import Endpoint
from gptq_diff.server_probe.ask import Asker
from gptq_diff.server_probe.collapse import State
from gptq_diff.server_probe.questions import Question
from gptq_diff.server_probe.ruler import Ruler
from gptq_diff.server_probe.server import MAX_TOKENS, Refused, Server
from gptq_diff.server_probe.witness import FRESH, Kind, Witness, second_look

LENGTHS = (1, 32, 48, 64, 128, 256)
"""Prompt tokens that are asked, about; 1 is the shortest that there can be. The reported boundary is 50."""

_PAST_THE_CACHE = 150
"""Filler words that make a prompt long beyond any boundary seen."""

_SHORT = 48
"""Prompt tokens of the prompt that is asked with and without a cached beginning, where none has failed."""

_SILENT = 4
"""So many questions in a row without an answer, and no more is asked. Short and long ones take turns, so that a server
that fails at one of the two does not end the probe."""


@dataclass(frozen=True)
class Plan:
    """What is asked. lengths: in prompt tokens. repeats: of each. boundary: whether it is looked for."""

    lengths: tuple[int, ...] = LENGTHS
    repeats: int = 2
    boundary: bool = True


class Probe:
    """Asks, and keeps what came: `witnesses` in the order asked, `ended` the reason why it did not ask all."""

    def __init__(self, server: Server, plan: Plan, source: random.Random, say: Callable[[str], None]) -> None:
        self.server = server
        self.witnesses: list[Witness] = []
        self.ended: str | None = None
        self._plan = plan
        self._say = say
        self._asker = Asker(server, source)
        self._ruler = Ruler()

    def run(self, *, may_change: bool) -> None:
        """All of it, or as much as there is time for. may_change: whether it may go to the other endpoint."""
        try:
            self._settle(may_change=may_change)
            self._lengths()
            self._default_system()
            if self._plan.boundary:
                self._boundary()
            self._cache()
        except CannotJudge as error:
            self.ended = str(error)

    def _settle(self, *, may_change: bool) -> None:
        """The first question finds out how the server wants to be asked; its answer is judged with a fresh one."""
        self._say("asking how it wants to be asked")
        first = self._asker.question()
        try:
            answer = self.server.settle(first, may_change=may_change)
        except Refused as error:
            if not error.may_be_nan:
                raise
            return  # log probabilities that are NaN end so too; each question is tried without them
        self._ruler.learn(0, answer.prompt_tokens)
        for words in (0, _PAST_THE_CACHE):
            self._ruler.learn(words, self.server.count(self._asker.question(words)))

    def _lengths(self) -> None:
        asked: list[int] = []
        for length in _short_and_long(self._plan.lengths):
            words = self._ruler.words_for(length) or 0
            if words not in asked and self._fits(length):
                asked.append(words)
                self._ask(Kind.LENGTH, self._asker.question(words))
        for words in asked * (self._plan.repeats - 1):
            self._ask(Kind.LENGTH, self._asker.question(words))

    def _default_system(self) -> None:
        if self.server.manner.endpoint is Endpoint.CHAT and self.server.manner.system_role:
            for number in range(self._plan.repeats):
                self._ask(Kind.DEFAULT_SYSTEM, self._asker.question(number=number, default_system=True))

    def _boundary(self) -> None:
        """Halve the stretch in which collapsed turns into healthy, until its ends are a token apart."""
        states = self._by_words()
        changes = [(a, b) for a, b in zip(states, states[1:]) if a[1] is not b[1]]
        if len(changes) != 1:
            return
        (low, state), (high, _) = changes[0]
        while high - low > 1 and not self._a_token_apart(low, high):
            middle = (low + high) // 2
            found = self._ask(Kind.BOUNDARY, self._asker.question(middle)).state
            if found is State.UNJUDGED:
                return
            low, high = (middle, high) if found is state else (low, middle)
        for words in (low, high):
            asked = sum(each.words == words and each.kind in (Kind.LENGTH, Kind.BOUNDARY) for each in self.witnesses)
            for _ in range(self._plan.repeats - asked):
                self._ask(Kind.BOUNDARY, self._asker.question(words))

    def _cache(self) -> None:
        """The same short prompt once more, when a good long prompt that begins alike is cached; then the reverse."""
        states = self._by_words()
        failing = [words for words, state in states if state is State.COLLAPSED]
        if len(failing) == len(states):
            return  # it collapses at every length: a cache has nothing good to give
        words = max(failing) if failing else self._ruler.words_for(_SHORT) or 0
        if not self._fits(_PAST_THE_CACHE + _SHORT):
            return
        first = self._asker.question(words, after=_PAST_THE_CACHE, number=1)
        if self._ask(Kind.PRIMER, first).state is State.HEALTHY:
            self._ask(Kind.CACHED, self._asker.question(words, mark=first.mark))
        if failing:
            first = self._asker.question(words)
            if self._ask(Kind.PRIMER, first).state is State.COLLAPSED:
                self._ask(Kind.SPOILT, self._asker.question(words, after=_PAST_THE_CACHE, mark=first.mark, number=1))

    def _ask(self, kind: Kind, question: Question) -> Witness:
        self._say(f"asking a prompt with {question.words} words of filler ({kind.value})")
        found = self._asker.witness(kind, question)
        if kind in (Kind.LENGTH, Kind.BOUNDARY):
            self._ruler.learn(question.words, found.tokens)
        self.witnesses = second_look([*self.witnesses, found])
        if all(each.answer is None for each in self.witnesses[-_SILENT:]) and len(self.witnesses) >= _SILENT:
            raise CannotJudge(f"{_SILENT} questions in a row got no answer, the last: {found.verdict.evidence}")
        return self.witnesses[-1]

    def _by_words(self) -> list[tuple[int, State]]:
        """Of the fresh prompts that differ by their filler alone: collapsed where one of them did."""
        found: dict[int, State] = {}
        for each in self.witnesses:
            if each.kind in FRESH - {Kind.DEFAULT_SYSTEM} and each.state is not State.UNJUDGED:
                worse = found.get(each.words) is State.COLLAPSED
                found[each.words] = State.COLLAPSED if worse else each.state
        return sorted(found.items())

    def _a_token_apart(self, low: int, high: int) -> bool:
        tokens = self._ruler.seen
        return low in tokens and high in tokens and tokens[high] - tokens[low] <= 1

    def _fits(self, tokens: int) -> bool:
        context = self.server.found.context
        return context is None or tokens + MAX_TOKENS <= context


def _short_and_long(lengths: tuple[int, ...]) -> list[int]:
    """The shortest, the longest, the second shortest, ..."""
    rest = sorted(set(lengths))
    return [rest.pop(-(place % 2)) for place in range(len(rest))]
