"""Dirty memory: NaN is left where the output is likely to go. A kernel that adds to what it did not clear shows it.

Best effort: it is the allocator that decides which memory a kernel gets (gptq_diff.engines.linear_calls.leave_dirt), so
NaN in y proves something and its absence proves little.
"""

from __future__ import annotations

import torch

from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject, counted
from gptq_diff.diagnose.experiments.distance import distance, farthest
from gptq_diff.diagnose.experiments.repeats import noise_share
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding

REPEATS = 5


class DirtyMemory(Probe):
    """Whether y depends on what was in memory before."""

    name = "dirty-memory"

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """The call as captured, five times with and five times without."""
        if answers:
            return ()
        rows, keep = subject.rows, subject.looked_at
        return (
            LinearCall(self.call_name("clean"), rows, repeats=REPEATS, keep=keep),
            LinearCall(self.call_name("dirty"), rows, repeats=REPEATS, keep=keep, dirty=True),
        )

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """More NaN than without, or another answer than the kernel's own noise explains, is uninitialised memory."""
        clean, dirty = answers[self.call_name("clean")], answers[self.call_name("dirty")]
        first_MN = clean.y_RMN[0]
        own = farthest([distance(first_MN, y_MN) for y_MN in clean.y_RMN[1:]])
        apart = farthest([distance(first_MN, y_MN) for y_MN in dirty.y_RMN])
        new_nan = int(_nans(dirty).max() - _nans(clean).max())
        share = noise_share(clean, apart)
        figures: dict[str, float | None] = {
            "differing": apart.differing, "new_nan": new_nan, "largest_l2_rel": apart.l2_rel,
            "largest_l2_rel_clean": own.l2_rel, "share_of_two_roundings": share,
        }  # fmt: skip
        finding = None
        if new_nan > 0 or share > max(1.0, 2 * noise_share(clean, own)):
            nan = f"y changes by {apart.l2_rel:.1e} (relative l2)"
            if new_nan > 0:
                nan = f"{counted(new_nan, 'output')} more are NaN"
            evidence = (f"with NaN left in free memory {nan}: the kernel reads memory that nobody has written",)
            finding = Finding("race-or-uninitialised", 0.9, evidence, subject.layer)
        elif apart.differing and not own.differing:
            evidence = (
                f"{apart.differing} outputs have other bits with NaN left in free memory, within their rounding",
            )
        else:
            evidence = (
                "NaN left in free memory changes nothing (best effort: the allocator decides what is handed out)",
            )
        did = f"the captured call {REPEATS} times after memory of the output's size was filled with NaN and freed"
        return Experiment(self.name, subject.layer, subject.step, did, figures, evidence, finding)


def _nans(answer: Answer) -> torch.Tensor:
    """int64 [repeats]: NaN in each."""
    return torch.isnan(answer.y_RMN).sum(dim=(1, 2))
