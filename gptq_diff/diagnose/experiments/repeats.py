"""Repeats: the same call 20 times. The same bits, sums in another order, or something that should not happen at all."""

from __future__ import annotations

from gptq_diff.capture.bits import same_bits
from gptq_diff.compare.figures import FACTOR
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject
from gptq_diff.diagnose.experiments.distance import Distance, distance, farthest
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding, Judgement

REPEATS = 20
CALL = "same"
NOISE = "split-k-noise"
CLEAR = 2.0
"""Times that errors must differ to be another matter than noise near the threshold."""
RACE = "race-or-uninitialised"


class Repeats(Probe):
    """Whether one input always has one answer, and how far apart the answers are."""

    name = "repeats"
    sound_too = True

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """The call as captured, with the rows that can be judged kept."""
        if answers:
            return ()
        return (LinearCall(self.call_name(CALL), subject.rows, repeats=REPEATS, keep=subject.looked_at),)

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """Differences within what two independent roundings explain are `split-k-noise`, information and no fault."""
        answer = answers[self.call_name(CALL)]
        first_MN = answer.y_RMN[0]
        captured_MN = subject.y_MN[list(subject.looked_at)]
        apart = farthest([distance(first_MN, y_MN) for y_MN in answer.y_RMN[1:]])
        figures: dict[str, float | None] = {
            "repeats": REPEATS,
            "other_bits": sum(not same_bits(first_MN, y_MN) for y_MN in answer.y_RMN[1:]),
            "as_captured": sum(same_bits(captured_MN, y_MN) for y_MN in answer.y_RMN),
            "bad": sum(j.kind in BAD_KINDS for j in answer.judgements),
            "largest_ulp": apart.ulp, "largest_l2_rel": apart.l2_rel,
            "share_of_two_roundings": noise_share(answer, apart),
        }  # fmt: skip
        from_captured = distance(first_MN, captured_MN)
        evidence, cause = said(subject, answer, apart, from_captured)
        finding = None
        if cause == NOISE:
            finding = Finding(NOISE, 0.8, (f"at {subject.layer} {evidence[0]}",), None)
        elif cause == RACE:
            finding = Finding(RACE, 0.8, evidence, subject.layer)
        did = f"the captured call {REPEATS} times"
        return Experiment(self.name, subject.layer, subject.step, did, figures, evidence, finding)


def noise_share(answer: Answer, apart: Distance) -> float:
    """The difference, in what two independent roundings of the size that the kernel's explain at most."""
    floor = max((j.noise_floor or 0.0 for j in answer.judgements), default=0.0)
    return apart.l2_rel / (FACTOR * 2**0.5 * max(floor, 1e-12))


def said(
    subject: Subject, answer: Answer, apart: Distance, from_captured: Distance
) -> tuple[tuple[str, ...], str | None]:
    """Sentences, and the cause that follows.

    apart: the repeats; from_captured: the first of them and the captured output.
    """
    bad, share = sum(j.kind in BAD_KINDS for j in answer.judgements), noise_share(answer, apart)
    others = sum(not same_bits(answer.y_RMN[0], y_MN) for y_MN in answer.y_RMN[1:])
    evidence = [f"all {REPEATS} repeats have the same bits"]
    if others:
        size = f"{apart.ulp:,.3g} ulp, {apart.l2_rel:.1e} relative l2: {share:.2g} of what two roundings may make"
        evidence = [f"{others} of {REPEATS - 1} repeats have other bits than the first; at most {size}"]
    if 0 < bad < REPEATS and (apart.other_pattern or _clear(answer.judgements, share)):
        return (*evidence, f"{bad} of {REPEATS} repeats are wrong, the others right"), RACE
    gone = subject.bad_rows and not bad
    came = subject.sound and bad == REPEATS
    if (gone or came) and (from_captured.other_pattern or noise_share(answer, from_captured) > 1.0):
        how = "wrong, and none of the repeats is" if gone else "right, and all of the repeats are wrong"
        return (*evidence, f"the captured call was {how}"), RACE
    lost = apart.other_pattern and subject.kind != "overflow"  # where sums overflow, their order decides which ones
    if share > 1.0 or lost:
        return tuple(evidence), RACE
    return tuple(evidence), NOISE if others else None


def _clear(judgements: tuple[Judgement, ...], share: float) -> bool:
    """Whether wrong and right repeats differ by more than noise does, which may carry an error over the threshold."""
    excesses = [j.excess for j in judgements if j.excess is not None]
    return share > 1.0 or (bool(excesses) and max(excesses) > CLEAR * min(excesses))
