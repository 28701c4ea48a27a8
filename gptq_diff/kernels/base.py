"""What a kernel is: y[M, N] = x[M, K] W[K, N] for one quantised linear, in some arithmetic of its own."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_diff.records import LayerSpec, Support

if TYPE_CHECKING:
    import torch

    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class Product:
    """The result of one kernel call.

    y_MN: [M, N], the dtype that this kernel returns; without bias.
    path: the arithmetic that really ran ("exllama-fast", "exllama-reconstruct", "fp16", "exact", ...).
        It also names the error model that the judge applies (gptq_diff.numerics.floors).
    """

    y_MN: torch.Tensor
    path: str


class Kernel(abc.ABC):
    """One way to multiply by a GPTQ-packed weight; stateless but for a cache of unpacked weights.

    on_host: it computes on the CPU whatever device x is on, and so takes the packed tensors as they are mapped.
    takes_half: it rounds x to float16 first, so that this is its input, whatever the model around it computes in.
    """

    name: str
    on_host: bool = False
    takes_half: bool = False

    @abc.abstractmethod
    def supports(self, spec: LayerSpec) -> Support:
        """Whether this kernel can run that layer, from its shape and format alone."""

    def arithmetic(self, rows: int, linear: PackedLinear) -> str:  # noqa: ARG002  for the kernels that can say
        """What decides every bit of the answer for that many rows; kernels that say the same give the same bits.

        Empty where nobody vouches for it.
        """
        return ""

    @abc.abstractmethod
    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """x[M, K] (float16 or float32, finite or not) times the layer's weight; bias is not added."""
