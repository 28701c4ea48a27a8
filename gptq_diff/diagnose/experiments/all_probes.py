"""Every experiment, in the order that reports show them; a new one is a file and a line here."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject
from gptq_diff.diagnose.experiments.dirty_memory import DirtyMemory
from gptq_diff.diagnose.experiments.k_slices import KSlices
from gptq_diff.diagnose.experiments.repeats import RACE, Repeats
from gptq_diff.diagnose.experiments.row_sweep import RowSweep
from gptq_diff.diagnose.experiments.scaled_input import ScaledInput
from gptq_diff.diagnose.experiments.single_rows import SingleRows
from gptq_diff.diagnose.experiments.zero_input import ZeroInput
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment

PROBES: tuple[Probe, ...] = (
    ScaledInput(),
    SingleRows(),
    RowSweep(),
    Repeats(),
    DirtyMemory(),
    ZeroInput(),
    KSlices(),
)


COMPARING = frozenset({ScaledInput.name, RowSweep.name})
"""Experiments that compare a call with another one."""


def probes_for(subject: Subject) -> tuple[Probe, ...]:
    """All of them for a fault; for a sound kernel those that are worth it."""
    return tuple(probe for probe in PROBES if probe.sound_too or not subject.sound)


def next_calls(subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
    """The next round of all probes together; none once every one has what it needs."""
    return tuple(call for probe in probes_for(subject) for call in probe.plan(subject, own(probe, answers)))


def judge_all(subject: Subject, answers: Answers) -> tuple[Experiment, ...]:
    """What every probe says; one whose first round gave nothing is left out, unless it had nothing to ask.

    Where the same call is right at one time and wrong at another, nothing follows from comparing different calls.
    """
    found = []
    for probe in probes_for(subject):
        mine = own(probe, answers)
        if mine or not probe.plan(subject, {}):
            found.append(probe.judge(subject, mine))
    if any(e.name == Repeats.name and e.finding is not None and e.finding.cause == RACE for e in found):
        found = [_withdrawn(e) if e.name in COMPARING else e for e in found]
    return tuple(found)


def _withdrawn(experiment: Experiment) -> Experiment:
    if experiment.finding is None:
        return experiment
    why = f"not counted as {experiment.finding.cause}, since repeats of one call differ"
    return replace(experiment, finding=None, evidence=(*experiment.evidence, why))


def own(probe: Probe, answers: Answers) -> dict[str, Answer]:
    """The answers to that probe's calls."""
    return {name: answer for name, answer in answers.items() if name.startswith(f"{probe.name}/")}
