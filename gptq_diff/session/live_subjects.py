"""Which captured calls experiments are made on: the first bad linear of every failing backend and prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.judge_run import Key, layer_weight
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.experiments.base import Subject
from gptq_diff.diagnose.experiments.subject import Where, subject_of
from gptq_diff.records import ORIGINAL, Judgement
from gptq_diff.releases import backend_of_release
from gptq_diff.session.asked import ALL, AUTO
from gptq_diff.session.experiments_store import fresh_dir, write_experiments
from gptq_diff.session.live import not_run

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint

MOST_PROMPTS = 4
"""Prompts of one backend that experiments are made on."""
SIMULATED = "transformers"
"""The engine whose kernels are ours, but for those of releases: nothing is to be found out about them, unless asked."""


def concerned(mode: str, engine: str, kernel: str) -> bool:
    """Whether backends of that engine are looked at."""
    live = engine != SIMULATED or backend_of_release(kernel) is not None
    return kernel != ORIGINAL and (mode == ALL or (mode == AUTO and live))


@dataclass(frozen=True)
class Chosen:
    """A call to make experiments on, or why not."""

    key: Key
    judgement: Judgement
    why_not: str = ""


def chosen(judged: Mapping[Key, Sequence[Judgement]], mode: str) -> list[Chosen]:
    """The first bad call of each failing capture; with `all` of a sound backend the call that comes nearest to bad."""
    found: list[Chosen] = []
    for backend in dict.fromkeys(backend for backend, _ in judged):
        own = {key: judgements for key, judgements in judged.items() if key[0] == backend}
        bad = [(key, j) for key, judgements in own.items() if (j := _first_bad(judgements)) is not None]
        for i, (key, j) in enumerate(bad):
            found.append(Chosen(key, j, _why_not(j) or _too_many(i)))
        if not bad and mode == ALL:
            near = [(j.excess, key, j) for key, judgements in own.items() for j in judgements if _can_be_run(j)]
            if near:
                _, key, j = max(near, key=lambda entry: entry[0] or 0.0)
                found.append(Chosen(key, j))
    return found


def subjects(
    run: RunDir, choice: Sequence[Chosen], captures: Mapping[Key, Captured], kernels: Mapping[str, str],
    judge: Checkpoint, loaded: Checkpoint,
) -> list[Subject]:  # fmt: skip
    """Their tensors; for what cannot be run that is stored in place of experiments, with the reason."""
    specs = {spec.name: spec for spec in judge.layers}
    found = []
    for c in choice:
        (backend, prompt), j, why = c.key, c.judgement, c.why_not
        calls = [] if why else [k for k in captures[c.key].calls(j.layer) if k.step == j.step and k.part == j.part]
        made = None
        if calls:
            weight = layer_weight(specs[j.layer], judge, loaded)
            made = subject_of(Where(backend, kernels[backend], prompt), weight, calls[0], j)
        if made is not None:
            found.append(made)
        else:
            why = why or "its tensors were not kept, or no row of its input is finite"
            write_experiments(fresh_dir(run, backend, prompt), [not_run(j.layer, j.step, why)])
    return found


def _first_bad(judgements: Sequence[Judgement]) -> Judgement | None:
    return next((j for j in judgements if j.kind in BAD_KINDS), None)


def _why_not(j: Judgement) -> str:
    if j.path in STEPS_AFTER:
        return f"the first bad call is a step after the kernel ({j.path}), which is not run by itself"
    if j.part:
        return "the linear is shared out among tensor-parallel ranks, and is not run by itself there"
    return ""


def _too_many(number: int) -> str:
    return "" if number < MOST_PROMPTS else f"they were made on {MOST_PROMPTS} other prompts of this backend"


def _can_be_run(j: Judgement) -> bool:
    return j.kind == "ok" and not j.part and j.path not in STEPS_AFTER
