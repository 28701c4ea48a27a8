"""Does it still fail? One kernel call, held against the exact answer by the judge's own rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Protocol

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.compare.figures import LARGEST_HALF
from gptq_diff.compare.judge import CapturedCall, judge_layer
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.records import Judgement
from gptq_diff.reduce.call import Call, packed, weight_of


class Multiply(Protocol):
    """A kernel: x float16 [M, K] and a packed weight to y [M, N]; BackendError for what it does not take."""

    def __call__(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """The product and the path that ran."""


@dataclass(frozen=True)
class Fault:
    """What has to be there for a call to fail: Judgement.kind and Judgement.cause of the captured one.

    exact_at_most: largest magnitude of the exact answer; else an overflow is shrunk to where float16 ends anyway.
    """

    kind: str
    cause: str | None
    exact_at_most: float = LARGEST_HALF / 2

    @classmethod
    def of(cls, judgement: Judgement) -> Fault:
        """The captured call's."""
        most = math.inf if judgement.cause else max(judgement.exact_absmax, cls.exact_at_most)
        return cls(judgement.kind, judgement.cause, most)

    def shows(self, judgement: Judgement) -> bool:
        """Whether it is the same fault, as plainly."""
        same = judgement.kind == self.kind and judgement.cause == self.cause
        return same and judgement.exact_absmax <= self.exact_at_most


class Trial:
    """Tries calls on one kernel. made: how many so far."""

    def __init__(self, multiply: Multiply, fault: Fault) -> None:
        self._multiply = multiply
        self.fault = fault
        self.made = 0

    def outcome(self, call: Call) -> tuple[torch.Tensor, Judgement]:
        """Y [M, N] as the kernel gave it, and what the judge says of it."""
        self.made += 1
        linear = packed(call, f"call-{self.made}")  # kernels may know weights by their name
        product = self._multiply(call.x_MK, linear)
        captured = CapturedCall(0, 0, product.path, call.x_MK, product.y_MN, None)
        return product.y_MN, judge_layer(weight_of(linear), [captured])[0]

    def fails(self, call: Call) -> bool:
        """Whether the fault shows; a call that the kernel does not take does not show it."""
        try:
            return self.fault.shows(self.outcome(call)[1])
        except BackendError:
            return False

    def passes(self, call: Call) -> bool:
        """Whether nothing is wrong with it."""
        try:
            return self.outcome(call)[1].kind == "ok"
        except BackendError:
            return False


def simulated(make: Callable[[], Kernel]) -> Multiply:
    """A simulator in this process: a new one for each call, so that no weight is kept."""

    def multiply(x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        return make().multiply(x_MK, linear)

    return multiply
