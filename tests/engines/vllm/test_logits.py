"""Logits are kept as they were and looked at as vLLM's sampler looks at them."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.engines.vllm.logits import Logits
from tests.devices import DEVICES, in_force

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_they_are_those_before_the_sampler_worked_in_place(device: str, dtype: torch.dtype) -> None:
    if device == "cuda":
        with in_force(DEVICES[1]):
            pass
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    there = values.to(device, copy=True)
    logits = Logits(there)
    there.fill_(9)
    assert torch.equal(logits.values(), values.float())
    assert logits.values().device.type == "cpu"
    assert logits.look() == (True, int(torch.argmax(values.float())))


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 3.0, 3.0, 2.0],
        [-INF, -INF, -4.0],
        [NAN, 5.0, NAN],
        [1.0, NAN, 2.0],
        [INF, 1.0, INF],
        [NAN, NAN],
        [-INF, -INF],
        [INF, NAN, -INF],
    ],
)
def test_the_token_is_torchs_and_one_finite_logit_is_enough(values: list[float]) -> None:
    """The first of several largest; NaN before all others; -inf alone is not finite."""
    given = torch.tensor(values)
    assert Logits(given).look() == (bool(torch.isfinite(given).any()), int(torch.argmax(given)))
