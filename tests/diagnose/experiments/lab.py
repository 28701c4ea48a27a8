"""A linear, kernels with and without faults, and all experiments on one of them, without worker or files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.judge import CapturedCall, Weight, judge_layer
from gptq_diff.diagnose.experiments.all_probes import judge_all, next_calls
from gptq_diff.diagnose.experiments.answers import answers_of
from gptq_diff.diagnose.experiments.base import Answer, Subject
from gptq_diff.diagnose.experiments.subject import Where, subject_of
from gptq_diff.engines import linear_calls
from gptq_diff.kernels.base import Product
from gptq_diff.records import Experiment
from tests.checkpoint.build import linear_tensors, quant_config, write_checkpoint

LAYER = "model.layers.0.mlp.down_proj"
K, N, GROUP = 512, 64, 64
FAST, RECONSTRUCT, HALF = "exllama-fast", "exllama-reconstruct", "fp16"
Kernel = Callable[[torch.Tensor], Product]


class Bench:
    """One random 4-bit linear with a bias that no kernel should add."""

    def __init__(self, folder: Path) -> None:
        tensors = linear_tensors(LAYER, K, N, 4, GROUP, seed=3, bias=True)
        checkpoint = open_checkpoint(write_checkpoint(folder, tensors, quant_config(group_size=GROUP)))
        self.linear: PackedLinear = checkpoint.packed(LAYER)
        self.w_KN = dequantise(self.linear, torch.float32)
        none = torch.zeros(N, dtype=torch.bool)
        self.weight = Weight(self.linear.spec, self.w_KN, none, none, self.linear)

    def x(self, rows: int = 12, seed: int = 1) -> torch.Tensor:
        """Ordinary activations."""
        return torch.randn((rows, K), generator=torch.Generator().manual_seed(seed)).to(torch.float16)

    def outlier(self, rows: int = 12, row: int = 3, channel: int = 200, value: float = 9000.0) -> torch.Tensor:
        """With one massive activation."""
        x_MK = self.x(rows)
        x_MK[row, channel] = value
        return x_MK

    def exact(self, x_MK: torch.Tensor) -> torch.Tensor:
        """float64 [M, N]."""
        return x_MK.double() @ self.w_KN.double()

    def half(self, x_MK: torch.Tensor) -> Product:
        """A sound kernel that sums in float32."""
        return Product((x_MK.float() @ self.w_KN.half().float()).half(), HALF)

    def blocks(self, x_MK: torch.Tensor, order: list[int]) -> torch.Tensor:
        """float16 sums of the blocks of 128 rows of K, added in that order, rounded every time."""
        y_MN = torch.zeros((x_MK.shape[0], N), dtype=torch.float16)
        for block in order:
            part = slice(128 * block, 128 * (block + 1))
            y_MN += (x_MK[:, part].float() @ self.w_KN[part]).half()
        return y_MN

    def subject(self, kernel: Kernel, x_MK: torch.Tensor) -> Subject:
        """What the first call of the kernel, as a model would make it, is found to be."""
        product = kernel(x_MK)
        call = CapturedCall(0, 0, product.path, x_MK, product.y_MN, None)
        found = subject_of(Where("b", "k", "p"), self.weight, call, judge_layer(self.weight, [call])[0])
        assert found is not None
        return found

    def experiments(self, kernel: Kernel, x_MK: torch.Tensor) -> dict[str, Experiment]:
        """By name, all that are made on that kernel with that input."""
        subject = self.subject(kernel, x_MK)
        engine: Any = Alone(kernel)
        answers: dict[str, Answer] = {}
        rounds = 0
        while calls := next_calls(subject, answers):
            rounds += 1
            assert rounds < 5
            products = {call.name: linear_calls._call(engine, LAYER, subject.x_MK, call) for call in calls}
            answers |= answers_of(subject, self.weight, calls, products)
        return {found.name: found for found in judge_all(subject, answers)}


class Alone:
    """As much of an engine as experiments need."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:
        assert layer == LAYER
        return self.kernel(x_MK)


def findings(found: dict[str, Experiment]) -> dict[str, str]:
    """Experiment -> cause, for those that have one."""
    return {name: e.finding.cause for name, e in found.items() if e.finding is not None}
