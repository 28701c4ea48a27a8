"""What an experiment on a live kernel is: calls planned from a capture, and a judge of what they gave; it runs none."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_diff.compare.results import BAD_KINDS

if TYPE_CHECKING:
    import torch

    from gptq_diff.jobs import LinearCall
    from gptq_diff.records import Experiment, Judgement


MOST_LOOKED_AT = 64
"""Rows that are judged in every one of many calls: the exact answer for each costs a product with the whole weight."""


@dataclass(frozen=True)
class Subject:
    """The captured call that experiments are made on.

    kernel: mode of the engine. path: that ran. kind, cause, exact_absmax: of the call's judgement.
    x_MK, y_MN: as captured; of long calls some rows only, the bad ones first (gptq_diff.diagnose.experiments.subject).
    bad_rows: rows of x_MK that are bad by themselves, the worst one first; empty where the call is sound, or its error
    shows over the whole tensor or in a column only.
    finite_rows: rows whose x is finite. bias_N: the linear's, or None.
    """

    backend: str
    kernel: str
    prompt: str
    layer: str
    step: int
    path: str
    kind: str
    cause: str | None
    exact_absmax: float
    x_MK: torch.Tensor
    y_MN: torch.Tensor
    bad_rows: tuple[int, ...]
    finite_rows: tuple[int, ...]
    bias_N: torch.Tensor | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows of x_MK, in order."""
        return tuple(range(self.x_MK.shape[0]))

    @property
    def shown(self) -> tuple[int, ...]:
        """The rows in which the fault shows: the bad ones, in order, or all that can be judged."""
        return tuple(sorted(self.bad_rows)) or self.finite_rows

    @property
    def looked_at(self) -> tuple[int, ...]:
        """The rows, in order, judged where a call is made many times: the bad ones and some others."""
        others = [row for row in self.finite_rows if row not in self.bad_rows]
        return tuple(sorted([*self.bad_rows, *others][:MOST_LOOKED_AT]))

    @property
    def worst(self) -> int:
        """The worst row, or the first one."""
        return (self.bad_rows or self.finite_rows)[0]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with the captured call."""
        return self.kind not in BAD_KINDS


@dataclass(frozen=True)
class Answer:
    """What the kernel gave for one call.

    y_RMN: [repeats, kept rows, N]. path: that ran. judgements: one a repeat, against the exact answer for that input.
    """

    call: LinearCall
    y_RMN: torch.Tensor
    path: str
    judgements: tuple[Judgement, ...]

    @property
    def judgement(self) -> Judgement:
        """Of the first repeat."""
        return self.judgements[0]

    @property
    def bad(self) -> bool:
        """Whether the first repeat is wrong."""
        return self.judgement.kind in BAD_KINDS


Answers = Mapping[str, Answer]
"""By the name of the call."""


def counted(number: int, what: str) -> str:
    """`1 output`, `2 outputs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class Probe(abc.ABC):
    """One experiment. name: in reports, and before the / in the names of its calls.

    sound_too: worth making on a kernel that nothing is wrong with.
    """

    name: str
    sound_too: bool = False

    @abc.abstractmethod
    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """The calls of the next round; answers: what this probe's calls gave so far, none before the first round."""

    @abc.abstractmethod
    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """What the answers say."""

    def call_name(self, name: object) -> str:
        """The name of one of this probe's calls."""
        return f"{self.name}/{name}"
