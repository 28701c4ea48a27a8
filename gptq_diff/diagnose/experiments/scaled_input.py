"""Scaled input: x / 2^s, s = 0, 1, 2, ...: a fault that vanishes with the size of x is a sum that became too large.

A linear is linear: y(x / 2^s) * 2^s = y(x). Halving is exact, so an error that stays is no overflow.
"""

from __future__ import annotations

from gptq_diff.diagnose.experiments.base import Answers, Probe, Subject, counted
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding, Judgement

MOST_HALVINGS = 12


class ScaledInput(Probe):
    """How many halvings of x cure the fault."""

    name = "scaled-input"

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """All rows as captured, halved 0 to 12 times; the rows that show the fault are kept."""
        if answers:
            return ()
        return tuple(
            LinearCall(self.call_name(s), subject.rows, halvings=s, keep=subject.shown)
            for s in range(MOST_HALVINGS + 1)
        )

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """Cured at s: right at s and at every s above it."""
        judged = [answers[self.call_name(s)] for s in range(MOST_HALVINGS + 1) if self.call_name(s) in answers]
        bad = [s for s, answer in enumerate(judged) if answer.bad]
        whole = judged[0].judgement
        figures: dict[str, float | None] = {
            "halvings": None, "nonfinite": whole.nonfinite, "exact_absmax": whole.exact_absmax,
            "input_absmax": whole.input_absmax,
        }  # fmt: skip
        finding = None
        if not bad:
            evidence = ["the fault does not show when this linear is run by itself"]
        elif len(bad) == len(judged):
            evidence = [f"the fault stays however small the input is, down to x / {2 ** bad[-1]:,}: it is no overflow"]
        elif bad != list(range(len(bad))):
            evidence = [f"the fault comes and goes: wrong at x / {', x / '.join(f'{2**s:,}' for s in bad)} alone"]
        else:
            halvings = len(bad)
            figures["halvings"] = halvings
            evidence = [_cured(whole, judged[halvings].judgement, halvings)]
            if subject.cause is None and _smaller(judged[halvings].judgement, whole):
                confidence = 0.9 if subject.kind == "overflow" else 0.6
                evidence.append(f"so a sum inside the kernel is too large, by less than {2**halvings:,} times")
                summary = "a sum inside the kernel is too large"
                finding = Finding("accumulator-overflow", confidence, tuple(evidence), subject.layer, summary)
        did = "the captured input divided by 1, 2, 4, ... 4,096, and the output multiplied back"
        return Experiment(self.name, subject.layer, subject.step, did, figures, tuple(evidence), finding)


def _cured(whole: Judgement, cured: Judgement, halvings: int) -> str:
    lost = f"loses {counted(whole.nonfinite, 'output')}" if whole.nonfinite else f"errs by {_size(whole)}"
    return (
        f"x / {2**halvings:,} gives the right answer (y times {2**halvings:,}, error {_size(cured)}), where x itself "
        f"{lost}; the exact answer is at most {whole.exact_absmax:,.5g}"
    )


def _smaller(cured: Judgement, whole: Judgement) -> bool:
    """Whether the error went, and was not merely covered by the rounding of subnormal values."""
    if whole.nonfinite or whole.local_l2_rel is None or cured.local_l2_rel is None:
        return True
    return cured.local_l2_rel < whole.local_l2_rel / 2


def _size(judgement: Judgement) -> str:
    return "without a size" if judgement.local_l2_rel is None else f"{judgement.local_l2_rel:.1e}"
