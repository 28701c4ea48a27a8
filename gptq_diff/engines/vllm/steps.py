"""One forward pass after the other: where a step begins and ends, what its logits were, and which token is fed next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptq_diff.engines.vllm.logits import Logits
from gptq_diff.errors import CaptureError

if TYPE_CHECKING:
    from gptq_diff.capture.tap import Tap


PENDING = 32
"""Steps whose logits may wait to be looked at."""


class Steps:
    """Follows a model through one prompt.

    A step begins with the model's forward and ends with its `compute_logits` (a quantised lm_head runs in there).
    forced: ids to be chosen instead of the model's own; vLLM's sampler then sees logits that leave it no choice.
    values_a_row: how many values go into and come out of all tapped kernels for one row; 0 where nobody counted.
    samples: False for a tensor-parallel rank that vLLM may leave without logits; its tokens mean nothing.
    caches: the first rows of the prompt may come from a prefix cache, so that the prefill has fewer.
    """

    def __init__(
        self, prompt_rows: int, forced: tuple[int, ...] | None, tap: Tap | None, *, samples: bool = True,
        caches: bool = False,
    ) -> None:  # fmt: skip
        self.prompt_rows = self._prompt_tokens = prompt_rows
        self.samples = samples
        self._caches = caches
        self.forced = forced
        self.tap = tap
        self.values_a_row = 0
        self.step = 0
        self.running = False
        self._tokens: list[int] = []
        self._finite: list[bool] = []
        self._first_logits_V: torch.Tensor | None = None
        self._pending: list[Logits] = []  # the engine does not wait for a look

    @property
    def rows(self) -> int:
        """Rows that the present step must have: the prompt, then one."""
        return 1 if self.step else self.prompt_rows

    @property
    def tokens(self) -> list[int]:
        """The model's own choices, NaN counting as the largest value, as in vLLM's and torch's argmax."""
        self._look()
        return self._tokens

    @property
    def finite(self) -> list[bool]:
        """Of each step, whether any logit was."""
        self._look()
        return self._finite

    @property
    def first_logits_V(self) -> torch.Tensor | None:  # noqa: N802  shapes are part of the names here
        """float32, on the CPU; None before any step has ended."""
        self._look()
        return self._first_logits_V

    @contextlib.contextmanager
    def followed(self, model: nn.Module) -> Iterator[None]:
        """Watch that model; it is left as it was in any case."""
        owner: Any = model
        before = vars(model).get("compute_logits")
        original = owner.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> torch.Tensor | None:
            return self.end(original(*args, **kwargs))

        hook = model.register_forward_pre_hook(lambda _module, _arguments: self.begin())
        owner.compute_logits = compute_logits
        try:
            yield
        finally:
            hook.remove()
            if before is None:
                del owner.compute_logits
            else:
                owner.compute_logits = before

    def begin(self) -> None:
        """The model's forward is called."""
        if self.running:
            raise CaptureError("vLLM ran two forward passes for one token", "its schedule is not understood")
        self.running = True
        if self.tap is not None:
            self.tap.begin_step(self.step, self.rows * self.values_a_row)

    @property
    def cached_rows(self) -> int:
        """Of the prompt that the prefill did not compute, as far as calls have shown it."""
        return self._prompt_tokens - self.prompt_rows

    def check_rows(self, name: str, rows: int) -> None:
        """Refuse a batch that is not this step of this prompt; one row is an lm_head's share of the prefill.

        Where a cache may have answered for the prompt's first rows, the prefill's first call says how many are left.
        """
        if self._caches and not self.step and rows <= self._prompt_tokens:
            self.prompt_rows, self._caches = rows, False
        if rows not in (self.rows, 1):
            raise CaptureError(
                f"vLLM gave {name} {rows} rows in step {self.step}, not {self.rows}",
                "it padded, cached or split the prompt",
            )

    def end(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """The logits [1, V] are there; returns what the sampler is to see."""
        if logits is None and not self.samples:
            self._finish(Logits(torch.zeros(1)))
            return None
        if logits is None or logits.shape[0] != 1:
            shape = None if logits is None else list(logits.shape)
            raise CaptureError(f"vLLM computed logits of shape {shape} for one prompt", "its batch is not understood")
        step = self.step
        self._finish(Logits(logits[0]))
        if self.forced is None or step >= len(self.forced):
            return logits
        only = torch.full_like(logits, -1e4)
        only[0, self.forced[step]] = 1e4
        return only

    def _finish(self, logits: Logits) -> None:
        self.running = False
        if self.tap is not None:
            self.tap.end_step()
            for rows, name in self.tap.rows_seen.items():
                self.check_rows(name, rows)
        self._pending.append(logits)
        self.step += 1
        if len(self._pending) >= PENDING:
            self._look()

    def _look(self) -> None:
        """Fetch the logits that have been computed."""
        pending, self._pending = self._pending, []
        for logits in pending:
            seen = logits.look()
            self._finite.append(seen.finite)
            self._tokens.append(seen.token)
        if pending and self._first_logits_V is None:
            self._first_logits_V = pending[0].values()
