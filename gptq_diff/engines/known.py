"""Products that another kernel mode has given already for the very same input: taken from its capture, not made again.

`sim-gptq` is `sim-exllama` up to 50 rows and `sim-reconstruct` above, so one of them need not be simulated twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.store import CaptureReader
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.records import LayerSpec, Support

if TYPE_CHECKING:
    from pathlib import Path

    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class Earlier:
    """A capture of the same prompt by the same engine load, and the kernel that made it."""

    kernel: Kernel
    capture: CaptureReader


class Knowing(Kernel):
    """A kernel that looks into earlier captures first: same arithmetic, same bits of x, so the same y and path.

    One forward pass after the other from the prefill on, every linear once in each, as a tap sees them.
    """

    def __init__(self, kernel: Kernel, earlier: Sequence[Earlier]) -> None:
        self.name = kernel.name
        self.on_host = kernel.on_host
        self.takes_half = kernel.takes_half
        self.taken = 0
        self._kernel = kernel
        self._earlier = earlier
        self._calls: Counter[str] = Counter()

    def supports(self, spec: LayerSpec) -> Support:
        """What the kernel takes."""
        return self._kernel.supports(spec)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """As the kernel; from an earlier capture where it holds the answer."""
        layer = linear.spec.name
        step = self._calls[layer]
        self._calls[layer] += 1
        arithmetic = self._kernel.arithmetic(x_MK.shape[0], linear)
        for known in self._earlier if arithmetic else ():
            if known.kernel.arithmetic(x_MK.shape[0], linear) != arithmetic:
                continue
            if known.capture.has(step, layer, "out") and same_bits(known.capture.tensor(step, layer, "in"), x_MK):
                self.taken += 1
                return Product(known.capture.tensor(step, layer, "out"), known.capture.paths[step, layer])
        return self._kernel.multiply(x_MK, linear)


def earlier(captures: Sequence[tuple[Kernel, Path]]) -> list[Earlier]:
    """Readers of these captures."""
    return [Earlier(kernel, CaptureReader(capture)) for kernel, capture in captures]
