"""K slices: only some channels of x are left. Which slice of 128 carries the fault, and how many it takes to break."""

from __future__ import annotations

from gptq_diff.diagnose.experiments.base import Answers, Probe, Subject
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment

WIDTH = 128
"""Channels of x that go together: what one block of exllama's kernels adds up."""
SHOWN = 8


class KSlices(Probe):
    """The slices that fail alone; where none does, the shortest run of neighbours that fails."""

    name = "k-slices"

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """Each slice alone, and all slices up to each; then, where none fails alone, every run that ends there."""
        spans = slices(subject)
        if not answers:
            if len(spans) == 1:
                return ()
            alone = [self._call(subject, i, i) for i in range(len(spans))]
            return (*alone, *(self._call(subject, 0, i) for i in range(1, len(spans))))
        end = self._first_end(len(spans), answers)
        if self._alone(len(spans), answers) or end is None or self.call_name(f"1-{end}") in answers:
            return ()
        return tuple(self._call(subject, first, end) for first in range(1, end))

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """No finding: it says where."""
        spans = slices(subject)
        figures: dict[str, float | None] = {
            "slices": len(spans), "bad_alone": None, "first_channel": None, "last_channel": None,
        }  # fmt: skip
        if not answers:
            evidence = [f"the linear has {subject.x_MK.shape[1]} inputs: one slice"]
        else:
            alone, end = self._alone(len(spans), answers), self._first_end(len(spans), answers)
            figures["bad_alone"] = len(alone)
            if alone:
                first, last = spans[alone[0]][0], spans[alone[-1]][1] - 1
                shown = ", ".join(f"{spans[i][0]} to {spans[i][1] - 1}" for i in alone[:SHOWN])
                more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
                evidence = [f"{len(alone)} of {len(spans)} slices of {WIDTH} inputs fail alone: channels {shown}{more}"]
                figures["first_channel"], figures["last_channel"] = first, last
            elif end is None:
                evidence = ["no slice fails alone, nor do they together when this linear is run by itself"]
            else:
                start = max(s for s in range(end) if self._bad(s, end, answers))
                first, last = spans[start][0], spans[end][1] - 1
                figures["first_channel"], figures["last_channel"] = first, last
                evidence = [
                    f"no slice of {WIDTH} inputs fails alone; it takes the {end - start + 1} slices of channels "
                    f"{first} to {last}"
                ]
        did = f"the captured input with all but some slices of {WIDTH} channels set to zero"
        return Experiment(self.name, subject.layer, subject.step, did, figures, tuple(evidence), None)

    def _call(self, subject: Subject, first: int, last: int) -> LinearCall:
        spans = slices(subject)
        kept = ((spans[first][0], spans[last][1]),)
        keep = (subject.worst,) if subject.bad_rows else subject.finite_rows
        return LinearCall(self.call_name(f"{first}-{last}"), subject.rows, kept=kept, keep=keep)

    def _bad(self, first: int, last: int, answers: Answers) -> bool:
        answer = answers.get(self.call_name(f"{first}-{last}"))
        return answer is not None and answer.bad

    def _alone(self, count: int, answers: Answers) -> list[int]:
        return [i for i in range(count) if self._bad(i, i, answers)]

    def _first_end(self, count: int, answers: Answers) -> int | None:
        """The first slice up to which, from the beginning, it fails."""
        return next((i for i in range(count) if self._bad(0, i, answers)), None)


def slices(subject: Subject) -> list[tuple[int, int]]:
    """(first, last + 1) of every slice of channels."""
    k = subject.x_MK.shape[1]
    return [(first, min(first + WIDTH, k)) for first in range(0, k, WIDTH)]
