"""Single rows: each by itself, so that no other row can have a part in what happens."""

from __future__ import annotations

from gptq_diff.diagnose.experiments.base import Answers, Probe, Subject, counted
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment

MOST_ROWS = 64
SHOWN = 8
"""Rows that are named in a sentence."""


class SingleRows(Probe):
    """Which rows fail alone."""

    name = "single-rows"

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """One call a row: the bad ones first, then as many of the others as are allowed."""
        if answers:
            return ()
        others = [row for row in subject.finite_rows if row not in subject.bad_rows]
        chosen = sorted([*subject.bad_rows, *others][:MOST_ROWS])
        return tuple(LinearCall(self.call_name(row), (row,)) for row in chosen)

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """No finding: which rows fail says where, not why."""
        alone = [answer.call.rows[0] for answer in answers.values() if answer.bad]
        paths = sorted({answer.path for answer in answers.values()})
        bad = set(subject.bad_rows)
        figures: dict[str, float | None] = {
            "rows": len(answers), "bad_alone": len(alone), "bad_together": len(bad),
            "bad_together_only": len(bad.difference(alone)), "bad_alone_only": len(set(alone).difference(bad)),
        }  # fmt: skip
        evidence = [f"{len(alone)} of {counted(len(answers), 'row')} fail alone{_named(sorted(alone))}"]
        if bad and not alone:
            said = "" if paths == [subject.path] else f" ({', '.join(paths)} runs there, {subject.path} with all rows)"
            together = f"the {counted(len(bad), 'row')} wrong together with others"
            evidence.append(f"{together} {'is' if len(bad) == 1 else 'are'} right alone{said}")
        elif bad.difference(alone):
            evidence.append(f"wrong only together with others: {_named(sorted(bad.difference(alone)), '')}")
        did = "every captured row by itself, in a call of one row"
        return Experiment(self.name, subject.layer, subject.step, did, figures, tuple(evidence), None)


def _named(rows: list[int], before: str = ": ") -> str:
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"{before}row{'s' if len(rows) > 1 else ''} {shown}{more}"
