"""The experiments of a load that is being captured: asked for when its worker has nothing left to do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.judge_run import Key, judge_captures, open_captures, store_rows
from gptq_diff.jobs import AnyJob
from gptq_diff.judged_file import write_judged
from gptq_diff.records import Judgement
from gptq_diff.session.asked import OFF, Backend
from gptq_diff.session.live import Experiments
from gptq_diff.session.live_subjects import chosen, concerned, subjects
from gptq_diff.session.workarounds import Padding

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.launch import Outcome


class Live:
    """Makes the experiments of one run. mode: --experiments. judge, loaded: as the judge takes them.

    padding: tries longer prompts besides; None where workarounds are not wanted. alone: what is done inside is done by
    nobody else meanwhile.
    judged: captures that have been judged on the way, with the seconds that it took; their judgements are stored.
    """

    def __init__(
        self, run: RunDir, mode: str, reference: str, judge: Checkpoint, loaded: Checkpoint,
        padding: Padding | None = None,
        alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:  # fmt: skip
        self.run = run
        self.mode = mode
        self.reference = reference
        self.judge = judge
        self.loaded = loaded
        self.padding = padding
        self.alone = alone
        self.judged: dict[Key, float] = {}

    def of_load(self, backends: Sequence[Backend], prompts: Sequence[str]) -> OfLoad | None:
        """Those of one load; None where they would be of no use."""
        names = {b.name: b.kernel for b in backends if concerned(self.mode, b.engine, b.kernel)}
        return OfLoad(self, names, tuple(prompts)) if names and self.mode != OFF else None


class OfLoad:
    """The follow-up of one load (gptq_diff.launch.FollowUp)."""

    def __init__(self, live: Live, kernels: dict[str, str], prompts: tuple[str, ...]) -> None:
        self._live = live
        self._kernels = kernels
        self._prompts = prompts
        self._experiments: Experiments | None = None

    def __call__(self, outcomes: Sequence[Outcome]) -> list[AnyJob]:
        """First the captures are judged and the experiments begun, then they go on."""
        with self._live.alone():
            return self._jobs(outcomes)

    def _jobs(self, outcomes: Sequence[Outcome]) -> list[AnyJob]:
        padding = self._live.padding
        if self._experiments is None:
            self._experiments, judged = self._begin(outcomes)
            longer = [] if padding is None else padding.first(judged, self._kernels)
            return [*longer, *self._experiments.first()]
        if padding is not None:
            padding.collect(outcomes)
        return list(self._experiments.further(outcomes))

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """The load has ended."""
        if self._live.padding is not None:
            self._live.padding.collect(outcomes)
        if self._experiments is not None:
            self._experiments.close(outcomes)

    def _begin(self, outcomes: Sequence[Outcome]) -> tuple[Experiments, dict[Key, list[Judgement]]]:
        """The captures judged, and the experiments on them."""
        live = self._live
        finished = {o.backend: frozenset(o.finished) for o in outcomes}
        own = [(b, p) for b in self._kernels for p in self._prompts if p in finished.get(b, ())]
        beside = [(live.reference, p) for p in self._prompts if (live.reference, p) not in own]
        there = [key for key in beside if (live.run.capture(*key) / "manifest.json").is_file()]
        opened = open_captures(live.run, [*there, *own], live.reference)
        captures = {key: opened[key] for key in own}
        judged = judge_captures(captures, live.judge, live.loaded, lambda *_: None)
        for key, judgements in judged.items():
            write_judged(live.run.judged(*key), judgements)
            store_rows(live.run, key, captures[key])
            live.judged[key] = captures[key].seconds
        found = subjects(live.run, chosen(judged, live.mode), captures, self._kernels, live.judge, live.loaded)
        for captured in opened.values():
            captured.reader.close()
        return Experiments(live.run, found, live.judge, live.loaded), judged
