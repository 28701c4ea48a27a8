"""Zero input: a linear without bias gives zero, exactly, in any arithmetic."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding

NEAR = 2.0**-8
"""Relative difference up to which an output is that bias, whatever it was rounded to."""


class ZeroInput(Probe):
    """What comes out where nothing goes in."""

    name = "zero-input"

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """As many zero rows as were captured, twice, and one."""
        if answers:
            return ()
        return (
            LinearCall(self.call_name("all"), subject.rows, zero=True, repeats=2, keep=subject.looked_at),
            LinearCall(self.call_name("one"), (0,), zero=True),
        )

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """Anything but zero: a bias within the kernel, or memory that was not cleared; NaN scales give NaN, though."""
        found = [answers[self.call_name(name)] for name in ("all", "one") if self.call_name(name) in answers]
        nonzero = sum(int((answer.y_RMN != 0).sum()) for answer in found)
        figures: dict[str, float | None] = {"nonzero": nonzero, "outputs": sum(a.y_RMN.numel() for a in found)}
        finding = None
        if not nonzero:
            evidence = ("zero gives zero",)
        elif subject.cause == "nan-weights":
            evidence = (f"{nonzero} outputs are not zero: the weight's own scales are not finite",)
        elif any(_is_bias(subject, answer) for answer in found):
            evidence = (f"zero input gives the linear's bias: the kernel has added it to all {nonzero} outputs",)
            finding = Finding("bias", 0.8, evidence, subject.layer)
        else:
            evidence = (f"{nonzero} outputs for zero input are not zero: they come from somewhere else",)
            finding = Finding("race-or-uninitialised", 0.7, evidence, subject.layer)
        did = "rows of zeros, as many as captured, and one"
        return Experiment(self.name, subject.layer, subject.step, did, figures, evidence, finding)


def _is_bias(subject: Subject, answer: Answer) -> bool:
    if subject.bias_N is None:
        return False
    bias_N = subject.bias_N.double()
    gap = (answer.y_RMN.double() - bias_N).abs()
    return bool((bias_N != 0).any()) and bool((gap <= NEAR * bias_N.abs() + torch.finfo(torch.float16).tiny).all())
