"""The simulators in targeted mode: only calls that the fast path could break are simulated, the others are proved safe.

A call that is proved safe (`gptq_diff.kernels.fastpath.bounds`) gives the exact answer rounded to float16, by the path
BOUNDED, which is not judged: there is nothing of the kernel in it.
"""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.kernels.fastpath.bounds import bounded_product, can_bound
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_gptq import SimGptq
from gptq_diff.records import BOUNDED, LayerSpec, Support


class Targeted(Kernel):
    """A simulator of the fast path that is asked only where the bounds do not hold.

    whole: simulates every call. few_rows: calls of more rows than the fast path takes are left to it; False where it
    takes the fast path whatever M is.
    """

    takes_half = True
    on_host = True

    def __init__(self, whole: SimExllama | SimGptq, *, few_rows: bool) -> None:
        self.name = f"{whole.name}-targeted"
        self._whole = whole
        self._few_rows = few_rows

    def supports(self, spec: LayerSpec) -> Support:
        """What the simulator takes."""
        return self._whole.supports(spec)

    def arithmetic(self, rows: int, linear: PackedLinear) -> str:
        """Bounded or simulated is settled by x and the linear; what is left to the simulator is its own."""
        whole = self._whole.arithmetic(rows, linear)
        return f"{whole}, targeted" if self._is_fast(rows, linear) else whole

    def _is_fast(self, rows: int, linear: PackedLinear) -> bool:
        return not self._few_rows or rows <= CHAINS[linear.spec.bits].fast_rows

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the CPU, and how it came about; float32 x is rounded to float16 first."""
        if self._is_fast(x_MK.shape[0], linear) and can_bound(linear):
            exact_MN = bounded_product(x_MK.detach().to("cpu", torch.float16), linear)
            if exact_MN is not None:
                return Product(exact_MN.to(torch.float16), BOUNDED)
        return self._whole.multiply(x_MK, linear)


def targeted(simulator: str) -> Targeted:
    """The simulator of that name in targeted mode."""
    return Targeted(SimGptq(), few_rows=True) if simulator == "sim-gptq" else Targeted(SimExllama(), few_rows=False)
