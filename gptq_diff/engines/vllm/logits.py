"""Logits of a step: copied where they are, and looked at in main memory without making the engine wait."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Seen(NamedTuple):
    """Whether any logit is finite; the largest one's token, NaN counting as the largest, as in vLLM and torch."""

    finite: bool
    token: int


class Logits:
    """[V] of one step, taken before the sampler, which works in place; the copy leaves a GPU by itself."""

    def __init__(self, logits_V: torch.Tensor) -> None:
        kept_V = logits_V.detach().float()
        self._landed = None
        if kept_V.is_cuda:
            here_V = torch.empty(kept_V.shape, dtype=torch.float32, pin_memory=True)
            kept_V = here_V.copy_(kept_V, non_blocking=True)
            self._landed = torch.cuda.current_stream(logits_V.device).record_event()
        elif kept_V.data_ptr() == logits_V.data_ptr():
            kept_V = kept_V.clone()
        self._kept_V = kept_V

    def values(self) -> torch.Tensor:
        """float32 [V], on the CPU; waits until they are there."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._kept_V

    def look(self) -> Seen:
        """At the values, by numpy: one thread finds a maximum before torch's are awake."""
        values = self.values().numpy()
        token = int(values.argmax())
        return Seen(bool(np.isfinite(values[token]) or np.isfinite(values).any()), token)
