"""A release brought here by compiling its kernels: minutes for all, and nothing is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from gptq_diff.bisection.search import UNJUDGED, Verdict
from gptq_diff.errors import GptqDiffError
from gptq_diff.releases import Release
from gptq_diff.upstream.build import How, build_all
from gptq_diff.upstream.fetch import Where, pack_of
from gptq_diff.upstream.store import Store


@dataclass(frozen=True)
class Kernels:
    """Judges releases by their compiled kernels.

    package: vllm or gptqmodel. decide: what is to be said of a release whose kernels are backends now.
    """

    package: str
    store: Store
    how: How
    where: Where
    decide: Callable[[Release], Verdict]
    say: Callable[[str], None]

    def __call__(self, version: str) -> Verdict:
        """UNJUDGED where its sources cannot be had or do not compile, or the judge cannot judge it."""
        release = Release(self.package, version)
        try:
            pack = pack_of(release, self.store, self.where, self.say)
        except GptqDiffError as e:
            return Verdict(UNJUDGED, str(e))
        self.say(f"{release}: compiling")
        (outcome,) = build_all([pack], self.store, self.how, lambda event: None)  # noqa: ARG005  one line above
        if outcome.failure is not None:
            return Verdict(UNJUDGED, outcome.failure)
        return self.decide(release)
