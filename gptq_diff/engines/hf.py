"""The transformers engine: one skeleton, any kernel of ours in its quantised linears."""

from __future__ import annotations

import inspect
import platform

import numpy as np
import torch

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.quant_linear import Switchboard
from gptq_diff.engines.skeleton import empty_model, fill
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.catalogue import make_kernel

DTYPES = {"float16": torch.float16, "float32": torch.float32}


class HfEngine(Engine):
    """A checkpoint in a transformers skeleton of the given dtype."""

    def __init__(self, spec: LoadSpec) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        dtype = DTYPES[spec.dtype]
        self._checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        self._board = Switchboard(make_kernel("fp16"), make_kernel("fp16"))
        self._device = spec.device
        self._model = empty_model(spec.model, dtype, trust_remote_code=spec.trust_remote_code)
        fill(self._model, self._checkpoint, self._board, dtype, spec.device)
        self._ends = _end_ids(self._model)
        takes = inspect.signature(self._model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # else all rows' logits come

    def use_kernel(self, name: str) -> None:
        """Switch every quantised linear to the kernel of that name."""
        self.install(make_kernel(name))

    def install(self, kernel: Kernel) -> None:
        """Switch every quantised linear to that kernel; layers it refuses run in float16 and count as skipped."""
        self._board.kernel = kernel
        support = {spec.name: kernel.supports(spec) for spec in self._checkpoint.layers}
        self._board.refused = {name: s.reason for name, s in support.items() if not s.ok}

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why the present kernel cannot take it."""
        return dict(self._board.refused)

    @property
    def tapped(self) -> frozenset[str]:
        """Every quantised linear that the present kernel takes."""
        return frozenset(s.name for s in self._checkpoint.layers).difference(self._board.refused)

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """Greedy decode with a key-value cache; stops after the model's own end-of-sequence token."""
        tokens: list[int] = []
        finite: list[bool] = []
        first: torch.Tensor | None = None
        cache = None
        feed = torch.tensor([list(token_ids)], device=self._device)
        self._board.tap = tap
        try:
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
        finally:
            self._board.tap = None
        assert first is not None
        return Generation(tuple(tokens), tuple(finite), first, len(finite))

    def versions(self) -> dict[str, str]:
        """Interpreter and packages."""
        import transformers

        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        }


def _end_ids(model: torch.nn.Module) -> frozenset[int]:
    """End-of-sequence ids of config.json, a number or a list there."""
    ends = getattr(model.config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
