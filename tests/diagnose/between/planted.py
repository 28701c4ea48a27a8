"""Faults between linears, planted in a checkpoint's bytes and settings or in a loaded transformers model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.records import Finding, Report, Result
from tests.session.in_process import asked, result, run

PROMPT = (510, 3, 4, 5, 60, 7, 8, 90, 10, 11, 12, 300)
BLOCK = "model.layers.1"


def outcome(model: Path, sound: Path, out: Path, backend: str = "hf-fp16", **settings: Any) -> Result:
    """What one backend that loads `model` gives, judged by `sound`."""
    wanted = asked(model, backend, (PROMPT,), sound if sound != model else None, **{"max_new_tokens": 3, **settings})
    return result(run(wanted, out), backend)


def only(found: Result) -> Finding:
    """The one finding of a result."""
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


def patched(monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], None]) -> None:
    """Change every model that is loaded in float16, right after it is loaded."""
    load = HfEngine._load

    def changed(self: HfEngine, spec: LoadSpec, dtype: torch.dtype) -> nn.Module:
        model = load(self, spec, dtype)
        if dtype == torch.float16:
            change(model)
        return model

    monkeypatch.setattr(HfEngine, "_load", changed)


def without_residual(model: Any, block: int) -> None:
    """The sum after attention of one block forgets what was before it."""
    layer = model.model.layers[block]

    def forward(hidden: torch.Tensor, **others: Any) -> torch.Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **others)
        mixed: torch.Tensor = layer.mlp(layer.post_attention_layernorm(attended))
        total: torch.Tensor = attended + mixed
        return total

    layer.forward = forward


def statuses(report: Report) -> set[str]:
    """Of all results."""
    return {r.status for r in report.results}
