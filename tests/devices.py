"""Devices that tests run on besides the CPU: a GPU that is not there, and a real one where somebody asks for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

from tests.engines.fake_gpu import FakeGpu

FAKE, REAL = "fake", "cuda"
DEVICES = [FAKE, REAL]


@contextlib.contextmanager
def in_force(device: str) -> Iterator[str]:
    """The device's name for torch, inside; skipped with the reason where it is not to be had.

    The fake one computes on the CPU, and refuses what a real one would: tensors that meet without being brought there.
    """
    if device == REAL:
        if not os.environ.get("GPTQ_DIFF_TEST_CUDA"):
            pytest.skip("tests on a real GPU run where GPTQ_DIFF_TEST_CUDA=1 is set")
        if not torch.cuda.is_available():
            pytest.skip("GPTQ_DIFF_TEST_CUDA is set, and torch sees no GPU")
        yield "cuda"
        return
    with FakeGpu():
        yield "cuda"
