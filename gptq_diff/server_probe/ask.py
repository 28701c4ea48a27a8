"""Asking one question so that it can be judged, by another way where the first does not do."""

from __future__ import annotations

import random
from dataclasses import replace

from gptq_diff.server_probe.answers import Answer
from gptq_diff.server_probe.collapse import State, Verdict, judge
from gptq_diff.server_probe.exchange import NoReply
from gptq_diff.server_probe.questions import Mark, Question, new_mark
from gptq_diff.server_probe.server import Refused, Server
from gptq_diff.server_probe.witness import Kind, Witness


class Asker:
    """Asks a settled server, each question with a mark of its own unless one is given."""

    def __init__(self, server: Server, source: random.Random) -> None:
        self.server = server
        self._source = source

    def question(
        self,
        filler: int = 0,
        *,
        after: int = 0,
        mark: Mark | None = None,
        number: int = 0,
        default_system: bool = False,
    ) -> Question:
        """A new one; a mark makes it begin as an earlier one did. One number, so that only lengths differ."""
        return Question(mark or new_mark(self._source), filler, after, number, default_system)

    def witness(self, kind: Kind, question: Question) -> Witness:
        """Ask it. What fails for this question alone is a witness without an answer; OutOfTime passes through."""
        clock = self.server.caller.clock
        started = clock.now()
        failed = went_on = False
        try:
            try:
                answer = self.server.ask(question)
            except Refused as error:
                if not (error.may_be_nan and self.server.manner.logprobs):
                    raise
                failed = True
                answer = self.server.ask(self._anew(kind, question), logprobs=False)
            if _ended_at_once(answer) and self.server.manner.extras:
                went_on = True
                answer = self.server.ask(self._anew(kind, question), logprobs=not failed, go_on=True)
        except (Refused, NoReply) as error:
            return Witness(kind, question.words, Verdict(State.UNJUDGED, str(error)), None, failed, went_on)
        if answer.prompt_tokens is None:
            answer = replace(answer, prompt_tokens=self.server.count(question))
        return Witness(kind, question.words, judge(answer), answer, failed, went_on, clock.now() - started)

    def _anew(self, kind: Kind, question: Question) -> Question:
        """The same with another mark, since the cache knows this one by now; not where that is the point."""
        if kind in (Kind.PRIMER, Kind.CACHED, Kind.SPOILT):
            return question
        return Question(
            new_mark(self._source), question.filler, question.after, question.number, question.default_system
        )


def _ended_at_once(answer: Answer) -> bool:
    return judge(answer).state is State.UNJUDGED and answer.finish == "stop"
