"""Greedy decoding of one prompt on a Hugging Face style model, one forward pass a step, followed by a tap."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn

from gptq_diff.engines.base import Generation

if TYPE_CHECKING:
    from gptq_diff.capture.tap import Tap


class Decoder:
    """A causal language model and how it is called; works with every transformers release that has a cache.

    model: takes input_ids, past_key_values and use_cache, returns logits [1, rows, V] and past_key_values.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self._model = model
        self._device = device
        self._ends = end_ids(model)
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # else all rows' logits come

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """Greedy decode with a key-value cache; stops after the model's own end-of-sequence token."""
        tokens: list[int] = []
        finite: list[bool] = []
        first: torch.Tensor | None = None
        cache = None
        feed = torch.tensor([list(token_ids)], device=self._device)
        for step in range(max_new_tokens):
            if tap is not None:
                tap.begin_step(step)
            with torch.inference_mode():
                out = self._model(input_ids=feed, past_key_values=cache, use_cache=True, **self._last_only)
            if tap is not None:
                tap.end_step()
            cache = out.past_key_values
            logits_V = out.logits[0, -1].float()
            first = logits_V if first is None else first
            finite.append(bool(torch.isfinite(logits_V).any()))
            token = int(torch.argmax(logits_V))  # NaN counts as largest, so NaN logits give token 0
            tokens.append(token)
            if forced is None and token in self._ends:
                break
            if forced is not None:
                if step + 1 >= len(forced):
                    break
                token = forced[step]
            feed = torch.tensor([[token]], device=self._device)
        assert first is not None
        return Generation(tuple(tokens), tuple(finite), first, len(finite))


def end_ids(model: nn.Module) -> frozenset[int]:
    """End-of-sequence ids of config.json, a number or a list there."""
    ends = getattr(model.config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
