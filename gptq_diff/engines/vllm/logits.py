"""Logits of a step: copied and looked at where they are, brought to main memory without making the engine wait."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Seen(NamedTuple):
    """Whether any logit is finite; the largest one's token, NaN counting as the largest, as in vLLM and torch."""

    finite: bool
    token: int


class Logits:
    """[V] of one step, taken before the sampler, which works in place; what is launched leaves a GPU by itself.

    A prefill waits for these launches, so there are few: the largest logit says whether any is finite, unless it is
    infinite or NaN itself.
    """

    def __init__(self, logits_V: torch.Tensor) -> None:
        logits_V = logits_V.detach()
        top, token = torch.max(logits_V, dim=0)
        self._top, self._token, self._kept_V = (_brought(t) for t in (top, token, logits_V.float()))
        self._landed = torch.cuda.current_stream(logits_V.device).record_event() if logits_V.is_cuda else None

    def values(self) -> torch.Tensor:
        """float32 [V], on the CPU; waits until they are there."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._kept_V

    def look(self) -> Seen:
        """At the values."""
        values_V = self.values()
        finite = math.isfinite(float(self._top)) or bool(torch.isfinite(values_V).any())
        return Seen(finite, int(self._token))


def _brought(t: torch.Tensor) -> torch.Tensor:
    """A copy in main memory; from a GPU it is there once what was launched so far is done."""
    if not t.is_cuda:
        return t.clone()
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
