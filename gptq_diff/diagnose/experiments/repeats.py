"""Repeats: the same call 20 times. The same bits, sums in another order, or something that should not happen at all."""

from __future__ import annotations

from gptq_diff.compare.figures import FACTOR
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.experiments.answers import same_bits
from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject
from gptq_diff.diagnose.experiments.distance import Distance, distance, farthest
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding

REPEATS = 20
CALL = "same"
RACE = "race-or-uninitialised"


class Repeats(Probe):
    """Whether one input always has one answer, and how far apart the answers are."""

    name = "repeats"
    sound_too = True

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """The call as captured, with the rows that can be judged kept."""
        if answers:
            return ()
        return (LinearCall(self.call_name(CALL), subject.rows, repeats=REPEATS, keep=subject.finite_rows),)

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """Differences within what two independent roundings explain are `split-k-noise`, information and no fault."""
        answer = answers[self.call_name(CALL)]
        first_MN = answer.y_RMN[0]
        apart = farthest([distance(first_MN, y_MN) for y_MN in answer.y_RMN[1:]])
        others = sum(not same_bits(first_MN, y_MN) for y_MN in answer.y_RMN[1:])
        captured_MN = subject.y_MN[list(subject.finite_rows)]
        as_captured = sum(same_bits(captured_MN, y_MN) for y_MN in answer.y_RMN)
        bad = sum(j.kind in BAD_KINDS for j in answer.judgements)
        share = noise_share(answer, apart)
        figures: dict[str, float | None] = {
            "repeats": REPEATS, "other_bits": others, "as_captured": as_captured, "bad": bad,
            "largest_ulp": apart.ulp, "largest_l2_rel": apart.l2_rel, "share_of_two_roundings": share,
        }  # fmt: skip
        evidence, finding = said(subject, apart, figures)
        did = f"the captured call {REPEATS} times"
        return Experiment(self.name, subject.layer, subject.step, did, figures, evidence, finding)


def noise_share(answer: Answer, apart: Distance) -> float:
    """The difference, in what two independent roundings of the size that the kernel's explain at most."""
    floor = max((j.noise_floor or 0.0 for j in answer.judgements), default=0.0)
    return apart.l2_rel / (FACTOR * 2**0.5 * max(floor, 1e-12))


def said(subject: Subject, apart: Distance, figures: dict[str, float | None]) -> tuple[tuple[str, ...], Finding | None]:
    """Sentences, and what follows. figures: those of the experiment, all known."""
    others, bad = int(figures["other_bits"] or 0), int(figures["bad"] or 0)
    share = figures["share_of_two_roundings"] or 0.0
    if not others and bad == (0 if subject.sound else REPEATS):
        return (f"all {REPEATS} repeats have the same bits",), None
    size = f"{apart.ulp:,.3g} ulp, {apart.l2_rel:.1e} relative l2: {share:.2g} of what two roundings explain at most"
    evidence = [f"{others} of {REPEATS - 1} repeats have other bits than the first; at most {size}"]
    if not others:
        evidence = [f"all {REPEATS} repeats have the same bits"]
    lost = apart.other_pattern and subject.kind != "overflow"  # where sums overflow, their order decides which ones
    if 0 < bad < REPEATS:
        evidence.append(f"{bad} of {REPEATS} repeats are wrong, the others right")
        return tuple(evidence), _race(0.8, evidence, subject)
    if not subject.sound and not bad:
        evidence.append("the captured call was wrong, and none of the repeats is")
        return tuple(evidence), _race(0.6, evidence, subject)
    if subject.sound and bad:
        evidence.append("the captured call was right, and all of the repeats are wrong")
        return tuple(evidence), _race(0.6, evidence, subject)
    if share > 1.0 or lost:
        return tuple(evidence), _race(0.8, evidence, subject)
    told = (f"at {subject.layer} {evidence[0]}",)
    return tuple(evidence), Finding("split-k-noise", 0.8, told, None)


def _race(confidence: float, evidence: list[str], subject: Subject) -> Finding:
    return Finding(RACE, confidence, tuple(evidence), subject.layer)
